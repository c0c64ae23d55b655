// The classifier of a model repo in this page: files from the visitor's disk in, probabilities out. Nothing is sent anywhere.

import * as ort from "/onnxruntime-web/ort.wasm.min.mjs";
import { check, preprocess } from "./preprocess.js";

ort.env.wasm.wasmPaths = "/onnxruntime-web/";
ort.env.wasm.numThreads = window.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

async function read(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// RGB bytes of an encoded image as they were stored: upright, no colour management.
async function decode(file) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(file, options);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
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
  const exponentials = Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

export async function load() {
  const config = await read("/model/config.json");
  const calibration = await read("/model/calibration.json");
  const cfg = config.pretrained_cfg;
  check(cfg);
  const session = await ort.InferenceSession.create("/model/onnx/model.onnx", { executionProviders: ["wasm"] });
  // One image file in; label, probabilities, and milliseconds of both halves out.
  async function classify(file) {
    const started = performance.now();
    const { pixels, width, height } = await decode(file);
    const input = preprocess(pixels, width, height, cfg);
    const prepared = performance.now();
    const tensor = new ort.Tensor("float32", input, [1, ...cfg.input_size]);
    const { logits } = await session.run({ pixel_values: tensor }, ["logits"]);
    const probabilities = softmax(logits.data, calibration.temperature.value);
    const ended = performance.now();
    const best = probabilities.indexOf(Math.max(...probabilities));
    return {
      file: file.name,
      label: config.label_names[best],
      probabilities,
      prepare_ms: prepared - started,
      network_ms: ended - prepared,
    };
  }
  return { classify, labels: config.label_names, descriptions: config.label_descriptions };
}

function show(answer, descriptions) {
  const row = document.querySelector("#answers").insertRow();
  const percent = `${(100 * Math.max(...answer.probabilities)).toFixed(1)} %`;
  const milliseconds = `${(answer.prepare_ms + answer.network_ms).toFixed(0)} ms`;
  for (const text of [answer.file, `${answer.label} ${descriptions[answer.label]}`, percent, milliseconds]) {
    row.insertCell().textContent = text;
  }
}

const state = document.querySelector("#state");
window.answers = [];
try {
  const { classify, descriptions } = await load();
  const chooser = document.querySelector("#images");
  chooser.addEventListener("change", async () => {
    chooser.disabled = true;
    for (const file of chooser.files) {
      try {
        const answer = await classify(file);
        window.answers.push(answer);
        show(answer, descriptions);
      } catch (error) {
        window.answers.push({ file: file.name, error: String(error) });
        document.querySelector("#answers").insertRow().insertCell().textContent = `${file.name}: ${error.message}`;
      }
    }
    chooser.disabled = false;
  });
  chooser.disabled = false;
  state.textContent = `Ready, ${ort.env.wasm.numThreads} threads. The images stay on this machine.`;
  window.ready = ort.env.wasm.numThreads;
} catch (error) {
  state.textContent = `The classifier could not be loaded: ${error.message}`;
  window.failed = String(error);
}
