// The model repo in this page: an image file in, a calibrated answer out. Nothing is sent anywhere.

import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";
import { appearance, appearanceScore } from "./appearance.js";
import { differentialCount, normalized } from "./counts.js";
import { check, preprocess } from "./preprocess.js";

const MODEL = new URL("model/", import.meta.url);
const MIN_SIDE = 16; // pixels, as in hub_model/inference/images.py
const VERDICT_LEVEL = "0.95";

ort.env.wasm.wasmPaths = new URL("onnxruntime-web/", import.meta.url).href;
ort.env.wasm.numThreads = window.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
export const threads = ort.env.wasm.numThreads;

async function read(name) {
  const response = await fetch(new URL(name, MODEL));
  if (!response.ok) throw new Error(`${name} cannot be read (${response.status})`);
  return response;
}

// The float32 tensors of a safetensors file, by name: { values, shape }.
async function readTensors(name) {
  const buffer = await (await read(name)).arrayBuffer();
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  const tensors = {};
  for (const [key, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)) {
    if (dtype !== "F32") throw new Error(`${name}: ${key} is not float32`);
    tensors[key] = { values: new Float32Array(buffer.slice(8 + length + start, 8 + length + end)), shape };
  }
  return tensors;
}

// Decode an image file in another thread: EXIF orientation applied, no colour management.
async function open(file) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  try {
    return await createImageBitmap(file, options);
  } catch {
    throw new Error(file.size ? "This is not an image that this browser can read (JPEG, PNG, WebP and BMP can be)." : "The file is empty.");
  }
}

const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

// RGB bytes [height, width, 3] of a decoded image, on white where it is transparent.
function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  if (Math.min(width, height) < MIN_SIDE) throw new Error(`The picture has only ${width}×${height} pixels; at least ${MIN_SIDE} on each side are needed.`);
  Object.assign(context.canvas, { width, height });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(width * height * 3);
  for (let i = 0, o = 0; i < rgba.length; i += 4) {
    pixels[o++] = rgba[i];
    pixels[o++] = rgba[i + 1];
    pixels[o++] = rgba[i + 2];
  }
  return { pixels, width, height };
}

function softmax(logits, temperature) {
  const largest = Math.max(...logits);
  return normalized(Array.from(logits, (logit) => Math.exp((logit - largest) / temperature)));
}

// Squared Mahalanobis distance of pooled features to the nearest class mean, as in hub_model/inference/ood.py.
function oodRule(rule, { class_means, directions, variances }) {
  if (rule.score !== "mahalanobis") throw new Error(`calibration.json: unknown OOD score ${rule.score}`);
  const [classes, size] = class_means.shape;
  const rank = variances.values.length;
  const project = (vector) => {
    const out = new Float64Array(rank);
    for (let d = 0; d < size; d++) {
      for (let k = 0; k < rank; k++) out[k] += vector[d] * directions.values[d * rank + k];
    }
    return out;
  };
  const means = Array.from({ length: classes }, (_, c) => class_means.values.subarray(c * size, (c + 1) * size));
  const projectedMeans = means.map(project);
  return (features) => {
    const projected = project(features);
    const distances = means.map((mean, c) => {
      let [total, explained, scaled] = [0, 0, 0]; // squared distances: all, in the subspace, and whitened
      for (let d = 0; d < size; d++) total += (features[d] - mean[d]) ** 2;
      for (let k = 0; k < rank; k++) {
        const square = (projected[k] - projectedMeans[c][k]) ** 2;
        explained += square;
        scaled += square / variances.values[k];
      }
      return scaled + Math.max(total - explained, 0) / rule.residual_variance;
    });
    return Math.min(...distances) / rule.threshold; // above 1: out of distribution
  };
}

// The kind of verdict and the classes that remain possible, likeliest first, as Calibration.verdicts gives them.
function verdictOf(labels, probabilities, sets, isOod, sure, descriptions) {
  const order = labels.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  const names = order.map((i) => labels[i]);
  if (isOod) return { kind: "unknown", open: names.slice(0, 1) };
  const members = sets[VERDICT_LEVEL];
  if (!members || !sure) return { kind: "uncalibrated", open: names.slice(0, 1) };
  if (probabilities[order[0]] >= (sure[names[0]] ?? Infinity)) {
    const unidentifiable = (descriptions[names[0]] ?? "").toLowerCase().includes("not identifiable");
    return { kind: unidentifiable ? "unidentifiable" : "sure", open: names.slice(0, 1) };
  }
  const open = [names[0], ...names.slice(1).filter((name) => members.includes(name))];
  return { kind: "between", open: open.length > 1 ? open : names.slice(0, 2) };
}

// Load the model repo beside this page. `classify(open(file))` answers for one image, `count(answers)` for many.
export async function load() {
  const settings = await (await read("settings.json")).json();
  const calibrated = await fetch(new URL("calibration.json", MODEL));
  const calibration = calibrated.ok ? await calibrated.json() : {}; // answers without it are "uncalibrated"
  const labels = settings.label_names;
  const cfg = settings.preprocessing;
  check(cfg);
  const rule = calibration.out_of_distribution;
  const scoreOod = rule && oodRule(rule, await readTensors("out_of_distribution.safetensors"));
  const scoreAppearance = calibration.appearance && appearanceScore(calibration.appearance);
  const session = await ort.InferenceSession.create(new URL("onnx/model.onnx", MODEL).href, {
    executionProviders: ["wasm"],
  });
  const descriptions = settings.label_descriptions ?? {};
  const confusion = calibration.confusion && labels.map((label) => calibration.confusion.answers[label]);
  const prior = normalized(labels.map((label) => calibration.prior?.shares[label] ?? 1 / labels.length));

  async function classify(opening) {
    const started = performance.now();
    const bitmap = await opening;
    const { pixels, width, height } = pixelsOf(bitmap);
    const input = preprocess(pixels, width, height, cfg);
    const prepared = performance.now();
    const tensor = new ort.Tensor("float32", input, [1, ...cfg.input_size]);
    const { logits, features } = await session.run({ pixel_values: tensor }, ["logits", "features"]);
    const computed = performance.now();
    const probabilities = softmax(logits.data, calibration.temperature?.value ?? 1);
    const sets = {};
    for (const [level, { thresholds }] of Object.entries(calibration.conformal ?? {})) {
      sets[level] = labels.filter((label, i) => 1 - probabilities[i] <= thresholds[label]);
    }
    let oodScore = scoreOod ? scoreOod(features.data) : null;
    if (scoreOod && scoreAppearance) {
      const weight = calibration.appearance.weight;
      const appearanceOod = scoreAppearance(appearance(input, cfg.input_size, cfg.mean, cfg.std));
      oodScore = oodScore ** (1 - weight) * appearanceOod ** weight;
    }
    const verdict = verdictOf(labels, probabilities, sets, scoreOod && oodScore > 1, calibration.sure?.thresholds, descriptions);
    const label = labels[probabilities.indexOf(Math.max(...probabilities))];
    const times = { prepare_ms: prepared - started, network_ms: computed - prepared, answer_ms: performance.now() - computed };
    return { bitmap, label, probabilities, sets, oodScore, verdict, ...times };
  }

  // Out-of-distribution inputs are not counted.
  function count(answers) {
    const cells = answers.filter((answer) => answer.verdict.kind !== "unknown");
    return differentialCount(labels, cells.map((answer) => answer.probabilities), prior, confusion);
  }

  return { labels, descriptions, open, classify, count };
}
