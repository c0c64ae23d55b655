// The differential count, as hub_model/inference/counts.py computes it: the same numbers, intervals to within the sampling.

const Z95 = 1.959963984540054;
const [CONFIDENT, DISPERSION, UNSEEN, UNIFORM, CHAINS, STEPS] = [0.6, 3, 0.1, 0.5, 200, 20]; // of counts.py

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
function prevalence(probabilities, prior, steps) {
  let shares = prior;
  for (let step = 0; step < steps; step++) {
    const updated = prior.map(() => 0);
    for (const row of probabilities) {
      const weighted = row.map((p, i) => p * (shares[i] / prior[i]));
      const sum = weighted.reduce((a, b) => a + b);
      weighted.forEach((value, i) => (updated[i] += value / sum));
    }
    const moved = Math.max(...updated.map((value, i) => Math.abs(value / probabilities.length - shares[i])));
    shares = updated.map((value) => value / probabilities.length);
    if (moved < 1e-6) break;
  }
  return shares;
}

// Uniform numbers in (0, 1) from a seed (mulberry32): the same cells get the same intervals.
function uniform(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return (((x ^ (x >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
}

// A draw of the gamma distribution (Marsaglia & Tsang 2000).
function gamma(shape, random) {
  if (shape < 1) return Math.max(gamma(shape + 1, random) * random() ** (1 / shape), 1e-300);
  const d = shape - 1 / 3;
  for (;;) {
    const normal = Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
    const v = (1 + normal / Math.sqrt(9 * d)) ** 3;
    if (v > 0 && Math.log(random()) < (normal * normal) / 2 + d - d * v + d * Math.log(v)) return d * v;
  }
}

function dirichlet(counts, random) {
  const draws = counts.map((count) => gamma(count, random));
  const sum = draws.reduce((a, b) => a + b);
  return draws.map((draw) => draw / sum);
}

// What the classifier says of a cell: the likeliest class c is 2 c, confidently so 2 c + 1.
function answerOf(row) {
  const largest = Math.max(...row);
  return 2 * row.indexOf(largest) + (largest >= CONFIDENT ? 1 : 0);
}

// Draws of the sample's prevalence, given how often each answer was given in it (Ziegler & Czyż 2024): see counts.py.
function samplePrevalence(given, confusion) {
  const [random, draws] = [uniform(1), []];
  for (let chain = 0; chain < CHAINS; chain++) {
    const rates = confusion.map((row) => dirichlet(row.map((count) => UNSEEN + count / DISPERSION), random));
    let shares = confusion.map(() => 1 / confusion.length);
    for (let step = 0; step < STEPS; step++) {
      const cells = confusion.map(() => UNIFORM);
      given.forEach((count, answer) => {
        if (count === 0) return;
        const posterior = shares.map((share, c) => share * rates[c][answer] + 1e-300);
        const sum = posterior.reduce((a, b) => a + b);
        for (let cell = 0; cell < count; cell++) {
          let [left, c] = [random() * sum, 0];
          while (c < posterior.length - 1 && (left -= posterior[c]) > 0) c++;
          cells[c]++;
        }
      });
      shares = dirichlet(cells, random);
      if (step >= STEPS / 2) draws.push(shares);
    }
  }
  return draws;
}

// NumPy's quantile, linear between the two nearest.
function quantile(sorted, q) {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

// One entry a class: cells, share and corrected share in 0…1 with their 95% intervals; empty for no cells.
// `confusion`: answers to labelled images of each class; without, the probabilities stand in for labels.
export function differentialCount(labels, probabilities, prior, confusion) {
  const cells = probabilities.length;
  if (cells === 0) return [];
  const rows = probabilities.map((row) => row.map((p) => Math.min(Math.max(p, 1e-9), 1)));
  const counted = labels.map(() => 0);
  for (const row of rows) counted[row.indexOf(Math.max(...row))]++;
  const corrected = prevalence(rows, prior, 1000);
  const given = new Array(2 * labels.length).fill(0);
  const own = labels.map(() => new Array(2 * labels.length).fill(0));
  for (const row of rows) {
    given[answerOf(row)]++;
    const weighted = row.map((p, c) => (p * corrected[c]) / prior[c]);
    const sum = weighted.reduce((a, b) => a + b);
    weighted.forEach((value, c) => (own[c][answerOf(row)] += value / sum));
  }
  const draws = samplePrevalence(given, confusion ?? own);
  return labels.map((label, i) => {
    const sorted = draws.map((shares) => shares[i]).sort((a, b) => a - b);
    const [lowest, high] = [quantile(sorted, 0.025), quantile(sorted, 0.975)];
    const low = lowest * cells < 0.5 ? 0 : lowest; // less than half a cell is none
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
