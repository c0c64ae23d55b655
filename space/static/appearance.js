// How an image looks, apart from what it shows, as hub_model/inference/appearance.py computes it.

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// Sums of 2 × 2 values; an odd last row or column is left out.
function blocks({ values, width, height }) {
  const [w, h] = [width >> 1, height >> 1];
  const sums = new Int32Array(w * h);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const at = 2 * (y * width + x);
      sums[y * w + x] = values[at] + values[at + 1] + values[at + width] + values[at + width + 1];
    }
  }
  return { values: sums, width: w, height: h };
}

// Sum of the products of two pictures within the first `height` rows and `width` columns.
function product(one, other, width, height) {
  const [a, b] = [one.values, other.values];
  let sum = 0;
  for (let y = 0; y < height; y++) {
    for (let at = y * one.width, end = at + width; at < end; at++) sum += a[at] * b[at];
  }
  return sum;
}

// Mean product of what two pictures lose by halving; their blocks are given.
function lost(one, other, oneBlocks, otherBlocks) {
  const { width, height } = oneBlocks;
  const whole = product(one, other, 2 * width, 2 * height);
  return (whole - product(oneBlocks, otherBlocks, width, height) / 4) / (4 * width * height);
}

// The value at a rank of whole numbers, of which `counts` says how many there are of each.
function atRank(counts, rank) {
  let value = 0;
  for (let seen = counts[0]; seen <= rank; seen += counts[value]) value++;
  return value;
}

const OPTICAL = Float64Array.from({ length: 4 * 255 + 1 }, (_, sum) => Math.log(Math.max(sum, 4))); // of the sum of a block
let rings; // which blocks lie in the middle and which at the edge, for the size seen last

function ringsOf(width, height) {
  if (rings?.width !== width || rings.height !== height) {
    const radius = (i) => Math.hypot((2 * Math.trunc(i / width)) / (height - 1) - 1, (2 * (i % width)) / (width - 1) - 1);
    const all = Array.from({ length: width * height }, (_, i) => i);
    rings = { width, height, centre: all.filter((i) => radius(i) < 0.35), border: all.filter((i) => radius(i) > 0.85) };
  }
  return rings;
}

// STATISTICS of one image: normalised input [3, H, W] and the mean and std that it was normalised by.
export function appearance(input, [, height, width], channelMean, channelStd) {
  const size = width * height;
  const channels = [0, 1, 2].map((c) => {
    const values = new Uint8Array(size); // levels as they were before float32
    const [scale, shift] = [channelStd[c] * 255, channelMean[c] * 255 + 0.5];
    for (let i = 0, at = c * size; i < size; i++, at++) values[i] = input[at] * scale + shift;
    return { values, width, height };
  });
  const coarse = channels.map(blocks);
  const { width: w, height: h } = coarse[0];
  const pixels = w * h;
  const [red, green, blue] = coarse.map(({ values }) => values);
  const grey = new Int32Array(pixels);
  const [greys, brights] = [new Uint32Array(12 * 255 + 1), coarse.map(() => new Uint32Array(4 * 255 + 1))];
  for (let i = 0; i < pixels; i++) greys[(grey[i] = red[i] + green[i] + blue[i])]++;
  const limit = atRank(greys, pixels - Math.max(Math.floor(pixels / 10), 1));
  let bright = 0;
  for (let i = 0; i < pixels; i++) {
    if (grey[i] < limit) continue;
    bright++;
    coarse.forEach(({ values }, c) => brights[c][values[i]]++);
  }
  const background = brights.map((counts) => (atRank(counts, (bright - 1) >> 1) + atRank(counts, bright >> 1)) / 2);
  const means = coarse.map(({ values }) => mean(values) / 4);
  const spread = channels.map((channel, c) => {
    const variance = product(channel, channel, 2 * w, 2 * h) / (4 * pixels) - means[c] ** 2;
    return Math.log(Math.sqrt(variance) / 255 + 1e-3);
  });
  const octaves = [];
  const sums = new Int32Array(size);
  for (const { values } of channels) for (let i = 0; i < size; i++) sums[i] += values[i];
  let picture = { values: sums, width, height };
  for (let octave = 0; octave < 4; octave++) {
    const smaller = blocks(picture);
    octaves.push(Math.log(Math.sqrt(lost(picture, picture, smaller, smaller)) / (3 * 255 * 4 ** octave) + 1e-4));
    picture = smaller;
  }
  const [redBlue, reds, blues] = [[0, 2], [0, 0], [2, 2]].map(([i, j]) => lost(channels[i], channels[j], coarse[i], coarse[j]) / 255 ** 2);
  const grain = redBlue / (Math.sqrt(reds * blues) + 1e-9);
  const { centre, border } = ringsOf(w, h);
  const empty = Math.log(Math.max(background[1], 4));
  const densities = centre.map((i) => empty - OPTICAL[green[i]]);
  const middle = mean(densities);
  const centreSpread = Math.sqrt(mean(densities.map((density) => (density - middle) ** 2)));
  const edge = border.reduce((sum, i) => sum + empty - OPTICAL[green[i]], 0) / border.length;
  const parts = [background.map((value) => value / (4 * 255)), means.map((value) => value / 255), spread, octaves];
  return [...parts.flat(), grain, middle, Math.log(centreSpread + 1e-3), edge];
}

// Inverse of a symmetric positive definite matrix (Gauss-Jordan).
function inverse(matrix) {
  const size = matrix.length;
  const rows = matrix.map((row, i) => [...row, ...row.map((_, j) => (i === j ? 1 : 0))]);
  for (let i = 0; i < size; i++) {
    const pivot = rows[i][i];
    rows[i] = rows[i].map((value) => value / pivot);
    for (let j = 0; j < size; j++) {
      if (j === i) continue;
      const factor = rows[j][i];
      rows[j] = rows[j].map((value, k) => value - factor * rows[i][k]);
    }
  }
  return rows.map((row) => row.slice(size));
}

// Squared Mahalanobis distance to the nearest training laboratory, as a share of the threshold.
export function appearanceScore({ sources, threshold }) {
  const known = Object.values(sources).map(({ mean: middle, covariance }) => ({ middle, precision: inverse(covariance) }));
  return (statistics) =>
    Math.min(
      ...known.map(({ middle, precision }) => {
        const away = statistics.map((value, k) => value - middle[k]);
        return away.reduce((sum, value, k) => sum + value * precision[k].reduce((a, p, l) => a + p * away[l], 0), 0);
      }),
    ) / threshold;
}
