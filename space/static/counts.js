// The differential count, as hub_model/inference/counts.py computes it: the same numbers, intervals included.

const Z95 = 1.959963984540054;
const RESAMPLES = 200;

// Wilson's score interval for a share (Wilson 1927).
function wilson(successes, trials) {
  const share = successes / trials;
  const square = Z95 * Z95;
  const middle = (share + square / (2 * trials)) / (1 + square / trials);
  const root = Math.sqrt((share * (1 - share)) / trials + square / (4 * trials * trials));
  const half = (Z95 / (1 + square / trials)) * root;
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

// Prevalence that explains posteriors which hold under `prior` (Saerens et al. 2002, section 2.3).
function prevalence(probabilities, prior, weights, steps) {
  const total = weights.reduce((a, b) => a + b);
  let shares = prior;
  for (let step = 0; step < steps; step++) {
    const updated = prior.map(() => 0);
    probabilities.forEach((row, cell) => {
      if (weights[cell] === 0) return;
      const weighted = row.map((p, i) => p * (shares[i] / prior[i]));
      const sum = weighted.reduce((a, b) => a + b);
      weighted.forEach((value, i) => (updated[i] += (weights[cell] * value) / sum));
    });
    const moved = Math.max(...updated.map((value, i) => Math.abs(value / total - shares[i])));
    shares = updated.map((value) => value / total);
    if (moved < 1e-6) break;
  }
  return shares;
}

// How often each cell counts in one bootstrap resample: drawn by a hash, so that Python draws the same ones.
function resample(cells, number) {
  const weights = new Array(cells).fill(0);
  for (let draw = 0; draw < cells; draw++) {
    let x = (number * cells + draw) >>> 0;
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    x = (x ^ (x >>> 16)) >>> 0;
    weights[Math.floor((x * cells) / 2 ** 32)]++;
  }
  return weights;
}

// NumPy's quantile, linear between the two nearest.
function quantile(sorted, q) {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

// One entry a class: cells, share and corrected share in 0…1 with their 95% intervals; empty for no cells.
export function differentialCount(labels, probabilities, prior) {
  const cells = probabilities.length;
  if (cells === 0) return [];
  const rows = probabilities.map((row) => row.map((p) => Math.min(Math.max(p, 1e-9), 1)));
  const counted = labels.map(() => 0);
  for (const row of rows) counted[row.indexOf(Math.max(...row))]++;
  const corrected = prevalence(rows, prior, new Array(cells).fill(1), 1000);
  const draws = [];
  for (let number = 0; number < RESAMPLES; number++) draws.push(prevalence(rows, prior, resample(cells, number), 50));
  return labels.map((label, i) => {
    const sorted = draws.map((shares) => shares[i]).sort((a, b) => a - b);
    const [low, high] = [quantile(sorted, 0.025), quantile(sorted, 0.975)];
    return {
      label,
      cells: counted[i],
      share: counted[i] / cells,
      interval: wilson(counted[i], cells),
      corrected: corrected[i],
      correctedInterval: [Math.min(low, corrected[i]), Math.max(high, corrected[i])],
    };
  });
}
