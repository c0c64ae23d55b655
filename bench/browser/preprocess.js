// timm's evaluation transform in the page: RGB bytes in, normalised float32 [3, size, size] out, bit for bit Pillow's.
// Pillow resizes in two passes (across, then down), each rounded to 8 bits, with coefficients of 22 fractional bits.

const FRACTION_BITS = 22;
const HALF = 2 ** (FRACTION_BITS - 1);
const ONE = 2 ** FRACTION_BITS;

// Keys' cubic with a = -0.5, as in Pillow (support 2).
function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// For each of `to` output pixels: the first input pixel that it sees and its integer weights.
function coefficients(from, to) {
  const scale = from / to;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  const rows = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), from);
    const weights = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      const weight = bicubic((x - centre + 0.5) * (1 / filterScale));
      weights.push(weight);
      sum += weight;
    }
    rows.push({ first, weights: weights.map((w) => Math.trunc((w / sum) * ONE + (w < 0 ? -0.5 : 0.5))) });
  }
  return rows;
}

const to8Bits = (sum) => Math.min(Math.max(Math.floor((sum + HALF) / ONE), 0), 255);

// `pixels` [height, width, 3] to [newHeight, newWidth, 3], both Uint8Array.
export function resize(pixels, width, height, newWidth, newHeight) {
  let across = pixels;
  if (newWidth !== width) {
    across = new Uint8Array(height * newWidth * 3);
    const rows = coefficients(width, newWidth);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < newWidth; x++) {
        const { first, weights } = rows[x];
        let red = 0, green = 0, blue = 0;
        for (let k = 0, at = (y * width + first) * 3; k < weights.length; k++, at += 3) {
          red += pixels[at] * weights[k];
          green += pixels[at + 1] * weights[k];
          blue += pixels[at + 2] * weights[k];
        }
        const out = (y * newWidth + x) * 3;
        across[out] = to8Bits(red);
        across[out + 1] = to8Bits(green);
        across[out + 2] = to8Bits(blue);
      }
    }
  }
  if (newHeight === height) return across;
  const line = newWidth * 3;
  const out = new Uint8Array(newHeight * line);
  const rows = coefficients(height, newHeight);
  for (let y = 0; y < newHeight; y++) {
    const { first, weights } = rows[y];
    for (let x = 0; x < line; x++) {
      let sum = 0;
      for (let k = 0, at = first * line + x; k < weights.length; k++, at += line) sum += across[at] * weights[k];
      out[y * line + x] = to8Bits(sum);
    }
  }
  return out;
}

// Python's round(): halves go to the even neighbour.
function round(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

// Throws for a configuration that this page does not know, rather than showing another picture to the network.
export function check(config) {
  const [, height, width] = config.input_size;
  if (config.interpolation !== "bicubic" || config.crop_mode !== "center" || height !== width) {
    throw new Error("this page knows square inputs, bicubic, with a centre crop only");
  }
}

// `pixels` Uint8Array [height, width, 3]; `config` the pretrained_cfg of config.json.
export function preprocess(pixels, width, height, config) {
  const size = config.input_size[1];
  const short = Math.floor(size / config.crop_pct);
  const [newWidth, newHeight] = width <= height
    ? [short, Math.trunc((short * height) / width)]
    : [Math.trunc((short * width) / height), short];
  const resized = resize(pixels, width, height, newWidth, newHeight);
  const left = round((newWidth - size) / 2);
  const top = round((newHeight - size) / 2);
  const out = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    const mean = Math.fround(config.mean[channel]);
    const std = Math.fround(config.std[channel]);
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const value = resized[((y + top) * newWidth + x + left) * 3 + channel];
        const centred = Math.fround(Math.fround(value / 255) - mean);
        out[(channel * size + y) * size + x] = centred / std;
      }
    }
  }
  return out;
}
