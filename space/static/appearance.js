// How an image looks, apart from what it shows, as hub_model/inference/appearance.py computes it.

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// Sums of 2 × 2 values; an odd last row or column is left out.
function blocks({ values, width, height }) {
  const [w, h] = [width >> 1, height >> 1];
  const sums = new Float64Array(w * h);
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

// STATISTICS of one image: normalised input [3, H, W] and the mean and std that it was normalised by.
export function appearance(input, [, height, width], channelMean, channelStd) {
  const size = width * height;
  const channels = [0, 1, 2].map((c) => {
    const values = new Float64Array(size); // levels of 0…255, as they were before float32
    for (let i = 0; i < size; i++) values[i] = Math.round((input[c * size + i] * channelStd[c] + channelMean[c]) * 255);
    return { values, width, height };
  });
  const coarse = channels.map(blocks);
  const { width: w, height: h } = coarse[0];
  const pixels = w * h;
  const [red, green, blue] = coarse.map(({ values }) => values);
  const grey = red.map((value, i) => value + green[i] + blue[i]);
  const limit = grey.slice().sort()[pixels - Math.max(Math.floor(pixels / 10), 1)];
  const background = [red, green, blue].map((values) => {
    const bright = values.filter((_, i) => grey[i] >= limit).sort();
    return (bright[(bright.length - 1) >> 1] + bright[bright.length >> 1]) / 2;
  });
  const means = coarse.map(({ values }) => mean(values) / 4);
  const spread = channels.map((channel, c) => {
    const variance = product(channel, channel, 2 * w, 2 * h) / (4 * pixels) - means[c] ** 2;
    return Math.log(Math.sqrt(variance) / 255 + 1e-3);
  });
  const octaves = [];
  let picture = { values: channels[0].values.map((value, i) => value + channels[1].values[i] + channels[2].values[i]), width, height };
  for (let octave = 0; octave < 4; octave++) {
    const smaller = blocks(picture);
    octaves.push(Math.log(Math.sqrt(lost(picture, picture, smaller, smaller)) / (3 * 255 * 4 ** octave) + 1e-4));
    picture = smaller;
  }
  const [redBlue, reds, blues] = [[0, 2], [0, 0], [2, 2]].map(([i, j]) => lost(channels[i], channels[j], coarse[i], coarse[j]) / 255 ** 2);
  const grain = redBlue / (Math.sqrt(reds * blues) + 1e-9);
  const [centre, border] = [[], []];
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const radius = Math.hypot((2 * y) / (h - 1) - 1, (2 * x) / (w - 1) - 1);
      const place = radius < 0.35 ? centre : border;
      if (radius < 0.35 || radius > 0.85) place.push(-Math.log(Math.max(green[y * w + x], 4) / Math.max(background[1], 4)));
    }
  }
  const middle = mean(centre);
  const centreSpread = Math.sqrt(mean(centre.map((density) => (density - middle) ** 2)));
  const parts = [background.map((value) => value / (4 * 255)), means.map((value) => value / 255), spread, octaves];
  return [...parts.flat(), grain, middle, Math.log(centreSpread + 1e-3), mean(border)];
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
