// The differential count, as computed by hub_model/inference/counts.py; the sampled intervals differ by the sampling error.

const Z95 = 1.959963984540054;
const [CONFIDENT, DISPERSION, UNSEEN, UNIFORM, CHAINS, STEPS] = [0.6, 3, 0.1, 0.5, 200, 20]; // of counts.py

// Wilson score interval for a proportion (Wilson 1927).
function wilson(successes, trials) {
  const p = successes / trials;
  const z2 = Z95 ** 2;
  const centre = (p + z2 / (2 * trials)) / (1 + z2 / trials);
  const half = (Z95 / (1 + z2 / trials)) * Math.sqrt((p * (1 - p)) / trials + z2 / (4 * trials * trials));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

const sum = (values) => values.reduce((a, b) => a + b);

// Values divided by their sum.
export function normalized(values) {
  const total = sum(values);
  return values.map((value) => value / total);
}

// The class prevalence of a sample from posteriors under `prior` (expectation maximisation, Saerens et al. 2002, section 2.3).
function prevalence(probabilities, prior) {
  let current = prior;
  for (let step = 0; step < 1000; step++) {
    const totals = prior.map(() => 0);
    for (const row of probabilities) {
      normalized(row.map((p, i) => p * (current[i] / prior[i]))).forEach((p, i) => (totals[i] += p));
    }
    const updated = totals.map((total) => total / probabilities.length);
    const change = Math.max(...updated.map((value, i) => Math.abs(value - current[i])));
    current = updated;
    if (change < 1e-6) break;
  }
  return current;
}

// Seeded uniform numbers in (0, 1) (mulberry32): the same cells get the same intervals.
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
  return normalized(counts.map((count) => gamma(count, random)));
}

// The classifier's answer for a cell whose likeliest class is c: 2 c, or 2 c + 1 if it is confident.
function answerOf(row) {
  const largest = Math.max(...row);
  return 2 * row.indexOf(largest) + (largest >= CONFIDENT ? 1 : 0);
}

// Samples of the prevalence given the count of each answer (Gibbs sampling, Ziegler & Czyż 2024): see counts.py.
function samplePrevalence(answerCounts, confusion) {
  const [random, draws] = [uniform(1), []];
  for (let chain = 0; chain < CHAINS; chain++) {
    const rates = confusion.map((row) => dirichlet(row.map((count) => UNSEEN + count / DISPERSION), random));
    let shares = confusion.map(() => 1 / confusion.length);
    for (let step = 0; step < STEPS; step++) {
      const cells = confusion.map(() => UNIFORM);
      answerCounts.forEach((count, answer) => {
        const posterior = shares.map((share, c) => share * rates[c][answer] + 1e-300);
        const total = sum(posterior);
        for (let cell = 0; cell < count; cell++) {
          let [rest, c] = [random() * total, 0];
          while (c < posterior.length - 1 && (rest -= posterior[c]) > 0) c++;
          cells[c]++;
        }
      });
      shares = dirichlet(cells, random);
      if (step >= STEPS / 2) draws.push(shares);
    }
  }
  return draws;
}

// NumPy's quantile with linear interpolation, for q < 1.
function quantile(sorted, q) {
  const rank = q * (sorted.length - 1);
  const low = Math.floor(rank);
  return sorted[low] + (rank - low) * (sorted[low + 1] - sorted[low]);
}

// One entry per class: cells, fraction and corrected fraction in 0…1 with their 95% intervals; none for no cells.
// `confusion`: counts of the answers for labelled images of each class; without it, the probabilities stand in for labels.
export function differentialCount(labels, probabilities, prior, confusion) {
  const cells = probabilities.length;
  if (cells === 0) return [];
  const rows = probabilities.map((row) => row.map((p) => Math.min(Math.max(p, 1e-9), 1)));
  const counted = labels.map(() => 0);
  for (const row of rows) counted[row.indexOf(Math.max(...row))]++;
  const corrected = prevalence(rows, prior);
  const answerCounts = new Array(2 * labels.length).fill(0);
  const estimated = labels.map(() => new Array(2 * labels.length).fill(0));
  for (const row of rows) {
    const answer = answerOf(row);
    answerCounts[answer]++;
    normalized(row.map((p, c) => (p * corrected[c]) / prior[c])).forEach((p, c) => (estimated[c][answer] += p));
  }
  const draws = samplePrevalence(answerCounts, confusion ?? estimated);
  return labels.map((label, i) => {
    const sorted = draws.map((shares) => shares[i]).sort((a, b) => a - b);
    let [low, high] = [quantile(sorted, 0.025), quantile(sorted, 0.975)];
    if (low * cells < 0.5) low = 0; // less than half a cell is none
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
