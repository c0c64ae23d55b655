// Appearance statistics of an image (light, colour, sharpness, grain), as computed by hub_model/inference/appearance.py.

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// Sums of 2 × 2 blocks; an odd last row or column is left out.
function blockSums({ values, width, height }) {
  const [w, h] = [width >> 1, height >> 1];
  const sums = new Int32Array(w * h);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const i = 2 * (y * width + x);
      sums[y * w + x] = values[i] + values[i + 1] + values[i + width] + values[i + width + 1];
    }
  }
  return { values: sums, width: w, height: h };
}

// Sum of the products of two images of equal size over their first `height` rows and `width` columns.
function dot(a, b, width, height) {
  let sum = 0;
  for (let y = 0; y < height; y++) {
    for (let i = y * a.width, end = i + width; i < end; i++) sum += a.values[i] * b.values[i];
  }
  return sum;
}

// Mean product of the detail of two images, i.e. of their differences from the 2 × 2 block means, given both block sums.
function detail(a, b, aBlocks, bBlocks) {
  const { width, height } = aBlocks;
  return (dot(a, b, 2 * width, 2 * height) - dot(aBlocks, bBlocks, width, height) / 4) / (4 * width * height);
}

// The value at a rank of sorted integers, given their histogram.
function valueAtRank(histogram, rank) {
  let value = 0;
  for (let seen = histogram[0]; seen <= rank; seen += histogram[value]) value++;
  return value;
}

const LOG = Float64Array.from({ length: 4 * 255 + 1 }, (_, sum) => Math.log(Math.max(sum, 4))); // of a block sum
let rings; // the blocks at the centre and at the border of an image, cached for the last size

function ringsOf(width, height) {
  if (rings?.width !== width || rings.height !== height) {
    const radius = (i) => Math.hypot((2 * Math.trunc(i / width)) / (height - 1) - 1, (2 * (i % width)) / (width - 1) - 1);
    const all = Array.from({ length: width * height }, (_, i) => i);
    rings = { width, height, centre: all.filter((i) => radius(i) < 0.35), border: all.filter((i) => radius(i) > 0.85) };
  }
  return rings;
}

// STATISTICS of one image from the normalised input [3, H, W] and the mean and std of the normalisation.
export function appearance(input, [, height, width], channelMean, channelStd) {
  const size = width * height;
  const channels = [0, 1, 2].map((c) => {
    const values = new Uint8Array(size); // the original 8-bit levels
    const [scale, shift] = [channelStd[c] * 255, channelMean[c] * 255 + 0.5];
    for (let i = 0; i < size; i++) values[i] = input[c * size + i] * scale + shift;
    return { values, width, height };
  });
  const blocks = channels.map(blockSums);
  const { width: w, height: h } = blocks[0];
  const pixels = w * h;
  const [red, green, blue] = blocks.map(({ values }) => values);
  const grey = new Int32Array(pixels);
  const greyHistogram = new Uint32Array(12 * 255 + 1);
  for (let i = 0; i < pixels; i++) greyHistogram[(grey[i] = red[i] + green[i] + blue[i])]++;
  const threshold = valueAtRank(greyHistogram, pixels - Math.max(Math.floor(pixels / 10), 1));
  const brightHistograms = blocks.map(() => new Uint32Array(4 * 255 + 1));
  let bright = 0;
  for (let i = 0; i < pixels; i++) {
    if (grey[i] < threshold) continue;
    bright++;
    blocks.forEach(({ values }, c) => brightHistograms[c][values[i]]++);
  }
  const background = brightHistograms.map((histogram) => {
    const [low, high] = [(bright - 1) >> 1, bright >> 1].map((rank) => valueAtRank(histogram, rank));
    return (low + high) / 2; // the median
  });
  const means = blocks.map(({ values }) => mean(values) / 4);
  const spread = channels.map((channel, c) => {
    const variance = dot(channel, channel, 2 * w, 2 * h) / (4 * pixels) - means[c] ** 2;
    return Math.log(Math.sqrt(variance) / 255 + 1e-3);
  });
  const sums = new Int32Array(size);
  for (const { values } of channels) for (let i = 0; i < size; i++) sums[i] += values[i];
  let octave = { values: sums, width, height };
  const sharpness = [0, 1, 2, 3].map((k) => {
    const next = blockSums(octave);
    const power = detail(octave, octave, next, next);
    octave = next;
    return Math.log(Math.sqrt(power) / (3 * 255 * 4 ** k) + 1e-4);
  });
  const power = (i, j) => detail(channels[i], channels[j], blocks[i], blocks[j]) / 255 ** 2;
  const grain = power(0, 2) / (Math.sqrt(power(0, 0) * power(2, 2)) + 1e-9);
  const { centre, border } = ringsOf(w, h);
  const empty = Math.log(Math.max(background[1], 4));
  const density = (i) => empty - LOG[green[i]]; // optical density
  const centreDensities = centre.map(density);
  const centreMean = mean(centreDensities);
  const centreSpread = Math.log(Math.sqrt(mean(centreDensities.map((d) => (d - centreMean) ** 2))) + 1e-3);
  const levels = [...background.map((value) => value / (4 * 255)), ...means.map((value) => value / 255)];
  return [...levels, ...spread, ...sharpness, grain, centreMean, centreSpread, mean(border.map(density))];
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

// Squared Mahalanobis distance to the nearest training laboratory, relative to the threshold.
export function appearanceScore({ sources, threshold }) {
  const laboratories = Object.values(sources).map(({ mean, covariance }) => ({ mean, precision: inverse(covariance) }));
  return (statistics) => {
    const distances = laboratories.map(({ mean, precision }) => {
      const difference = statistics.map((value, k) => value - mean[k]);
      const weighted = precision.map((row) => row.reduce((sum, p, l) => sum + p * difference[l], 0));
      return difference.reduce((sum, value, k) => sum + value * weighted[k], 0);
    });
    return Math.min(...distances) / threshold;
  };
}
