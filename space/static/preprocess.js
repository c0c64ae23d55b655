// timm's evaluation transform: RGB bytes in, normalised float32 [3, height, width] out, bit-identical to Pillow's.
// Pillow resizes in two passes (horizontal, then vertical), each rounded to 8 bits, with fixed-point weights of 22 fractional bits.

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

function bilinear(x) {
  return Math.max(1 - Math.abs(x), 0);
}

const FILTERS = { bicubic: { weigh: bicubic, radius: 2 }, bilinear: { weigh: bilinear, radius: 1 } };

// For each of `to` output pixels: the first input pixel of its support, and the fixed-point weights.
function coefficients(from, to, { weigh, radius }) {
  const scale = from / to;
  const filterScale = Math.max(scale, 1);
  const support = radius * filterScale;
  const rows = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), from);
    const weights = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      const weight = weigh((x - centre + 0.5) * (1 / filterScale));
      weights.push(weight);
      sum += weight;
    }
    rows.push({ first, weights: weights.map((w) => Math.trunc((w / sum) * ONE + (w < 0 ? -0.5 : 0.5))) });
  }
  return rows;
}

const to8Bits = (sum) => Math.min(Math.max(Math.floor((sum + HALF) / ONE), 0), 255);

// `values` [outer, from, inner] resampled to [outer, to, inner], both Uint8Array.
function resample(values, outer, from, to, inner, filter) {
  if (to === from) return values;
  const out = new Uint8Array(outer * to * inner);
  const rows = coefficients(from, to, filter);
  let next = 0;
  for (let o = 0; o < outer; o++) {
    for (const { first, weights } of rows) {
      const start = (o * from + first) * inner;
      for (let c = 0; c < inner; c++) {
        let sum = 0;
        for (let k = 0, i = start + c; k < weights.length; k++, i += inner) sum += values[i] * weights[k];
        out[next++] = to8Bits(sum);
      }
    }
  }
  return out;
}

// `pixels` [height, width, 3] resized to [newHeight, newWidth, 3], both Uint8Array.
function resize(pixels, width, height, newWidth, newHeight, filter) {
  const horizontal = resample(pixels, height, width, newWidth, 3, filter);
  return resample(horizontal, 1, height, newHeight, 3 * newWidth, filter);
}

// Python's round(): halves go to the even neighbour.
function round(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

// [width, height] after resizing, before the crop.
function resizedSize(width, height, { input_size, crop_pct, crop_mode }) {
  const [scaledHeight, scaledWidth] = input_size.slice(1).map((side) => Math.floor(side / crop_pct));
  if (crop_mode === "squash") return [scaledWidth, scaledHeight];
  const ratios = [height / scaledHeight, width / scaledWidth];
  if (crop_mode === "border" || scaledHeight !== scaledWidth) {
    const ratio = crop_mode === "border" ? Math.max(...ratios) : Math.min(...ratios);
    return [round(width / ratio), round(height / ratio)];
  }
  if (width <= height) return [scaledWidth, Math.trunc((scaledWidth * height) / width)];
  return [Math.trunc((scaledHeight * width) / height), scaledHeight];
}

// Offset of a centre crop; negative if the image is smaller.
function cropOffset(side, cropSide) {
  return side >= cropSide ? round((side - cropSide) / 2) : -Math.floor((cropSide - side) / 2);
}

// Throws for a configuration that this page does not support, instead of preprocessing in another way.
export function check({ interpolation }) {
  if (!FILTERS[interpolation]) throw new Error(`interpolation ${interpolation} is not supported by this page`);
}

// `pixels` Uint8Array [height, width, 3]; `config` the pretrained_cfg of config.json.
export function preprocess(pixels, width, height, config) {
  const [, outHeight, outWidth] = config.input_size;
  const [newWidth, newHeight] = resizedSize(width, height, config);
  const picture = resize(pixels, width, height, newWidth, newHeight, FILTERS[config.interpolation]);
  const left = cropOffset(newWidth, outWidth);
  const top = cropOffset(newHeight, outHeight);
  const out = new Float32Array(3 * outHeight * outWidth);
  for (let channel = 0; channel < 3; channel++) {
    const mean = Math.fround(config.mean[channel]);
    const std = Math.fround(config.std[channel]);
    const fill = config.crop_mode === "border" ? round(255 * config.mean[channel]) : 0;
    for (let y = 0; y < outHeight; y++) {
      for (let x = 0; x < outWidth; x++) {
        const [row, column] = [y + top, x + left];
        const inside = row >= 0 && row < newHeight && column >= 0 && column < newWidth;
        const value = inside ? picture[(row * newWidth + column) * 3 + channel] : fill;
        out[(channel * outHeight + y) * outWidth + x] = Math.fround(Math.fround(value / 255) - mean) / std;
      }
    }
  }
  return out;
}
