// How an image looks, apart from what it shows, as hub_model/inference/appearance.py computes it.

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2)));
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// Means of 2 × 2 pixels of one channel, and what is lost by them at every pixel.
function halve({ values, width, height }) {
  const [w, h] = [width >> 1, height >> 1];
  const halved = new Float64Array(w * h);
  for (let y = 0; y < 2 * h; y++) for (let x = 0; x < 2 * w; x++) halved[(y >> 1) * w + (x >> 1)] += values[y * width + x] / 4;
  const detail = new Float64Array(4 * w * h);
  for (let y = 0; y < 2 * h; y++) {
    for (let x = 0; x < 2 * w; x++) detail[y * 2 * w + x] = values[y * width + x] - halved[(y >> 1) * w + (x >> 1)];
  }
  return { values: halved, width: w, height: h, detail };
}

const power = (values) => Math.sqrt(mean(values.map((value) => value * value)));

// STATISTICS of one image: normalised input [3, H, W] and the mean and std that it was normalised by.
export function appearance(input, [, height, width], channelMean, channelStd) {
  const size = width * height;
  const channels = [0, 1, 2].map((c) => ({
    values: Float64Array.from(
      input.subarray(c * size, (c + 1) * size),
      (value) => Math.round((value * channelStd[c] + channelMean[c]) * 255) / 255, // as they were before float32
    ),
    width,
    height,
  }));
  const coarse = channels.map(halve);
  const pixels = coarse[0].values.length;
  const grey = coarse[0].values.map((red, i) => Math.round(((red + coarse[1].values[i] + coarse[2].values[i]) / 3) * 1e4));
  const limit = [...grey].sort((a, b) => b - a)[Math.max(Math.floor(pixels / 10), 1) - 1];
  const brightest = Array.from(grey.keys()).filter((i) => grey[i] >= limit);
  const background = coarse.map(({ values }) => median(brightest.map((i) => values[i])));
  const octaves = [];
  let level = { values: channels[0].values.map((red, i) => (red + channels[1].values[i] + channels[2].values[i]) / 3), width, height };
  for (let octave = 0; octave < 4; octave++) {
    const smaller = halve(level);
    octaves.push(Math.log(power(smaller.detail) + 1e-4));
    level = smaller;
  }
  const [red, , blue] = coarse.map(({ detail }) => detail);
  const grain = mean(red.map((value, i) => value * blue[i])) / (power(red) * power(blue) + 1e-9);
  const { width: w, height: h } = coarse[0];
  const [centre, border] = [[], []];
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const radius = Math.hypot((2 * y) / (h - 1) - 1, (2 * x) / (w - 1) - 1);
      const density = -Math.log(Math.max(coarse[1].values[y * w + x], 1 / 255) / Math.max(background[1], 1 / 255));
      if (radius < 0.35) centre.push(density);
      if (radius > 0.85) border.push(density);
    }
  }
  const spread = channels.map(({ values }) => Math.log(deviation(values) + 1e-3));
  const means = channels.map(({ values }) => mean(values));
  return [...background, ...means, ...spread, ...octaves, grain, mean(centre), Math.log(deviation(centre) + 1e-3), mean(border)];
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
