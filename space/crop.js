// The crop tool of "One cell": a square frame over a picture.
// Python sets `value` and receives "crop" with the frame, in fractions of the picture.
const MARKUP = `
  <p class="help" id="crop-help"></p>
  <div class="ground"><img alt=""><div class="frame" tabindex="0" role="group" aria-describedby="crop-help"></div></div>
  <label><span></span><input type="range" min="3" max="100" step="1"></label>
  <div class="actions"><button type="button" class="cut"></button><button type="button" class="whole"></button></div>`;
let frame = null;

function build(data) {
  const root = element.querySelector(".crop");
  root.innerHTML = MARKUP;
  const find = selector => root.querySelector(selector);
  const box = find(".frame"), size = find("input"), ratio = data.width / data.height;
  const words = { ".help": "help", "label span": "size", ".cut": "cut", ".whole": "whole" };
  for (const [selector, word] of Object.entries(words)) find(selector).textContent = data.words[word];
  find("img").src = `${window.gradio_config?.root || ""}/gradio_api/file=${data.url}`;
  box.setAttribute("aria-label", data.words.frame);
  find(".whole").hidden = !data.frame;
  const maxSide = Math.min(1, 1 / ratio);  // as a fraction of the width: the shorter side of the picture
  frame = data.frame || { left: 0.5 - maxSide / 6, top: 0.5 - maxSide * ratio / 6, side: maxSide / 3 };

  const centre = () => ({ x: frame.left + frame.side / 2, y: frame.top + frame.side * ratio / 2 });

  function place(change) {
    const square = { ...centre(), side: frame.side, ...change };
    const side = Math.min(maxSide, Math.max(0.03 * maxSide, square.side));
    const clip = (at, length) => Math.min(1 - length, Math.max(0, at - length / 2));
    frame = { left: clip(square.x, side), top: clip(square.y, side * ratio), side };
    box.style.cssText = `left:${100 * frame.left}%;top:${100 * frame.top}%;width:${100 * side}%;height:${100 * side * ratio}%`;
    size.value = Math.round(100 * side / maxSide);
  }

  function position(event) {
    const area = find(".ground").getBoundingClientRect();
    return { x: (event.clientX - area.left) / area.width, y: (event.clientY - area.top) / area.height };
  }
  find(".ground").addEventListener("click", event => event.target !== box && place(position(event)));
  box.addEventListener("pointerdown", event => {
    const from = position(event), start = centre();
    box.setPointerCapture(event.pointerId);
    box.onpointermove = move => {
      const to = position(move);
      place({ x: start.x + to.x - from.x, y: start.y + to.y - from.y });
    };
    box.onpointerup = box.onpointercancel = () => { box.onpointermove = null; };
  });
  size.addEventListener("input", () => place({ side: maxSide * size.value / 100 }));
  box.addEventListener("keydown", event => {
    const step = event.shiftKey ? 0.05 : 0.01, { x, y } = centre();
    const changes = {
      ArrowLeft: { x: x - step },
      ArrowRight: { x: x + step },
      ArrowUp: { y: y - step * ratio },
      ArrowDown: { y: y + step * ratio },
      "+": { side: frame.side * 1.1 },
      "-": { side: frame.side / 1.1 },
    };
    if (event.key === "Enter") find(".cut").click();
    else if (changes[event.key]) place(changes[event.key]);
    else return;
    event.preventDefault();
  });
  find(".cut").addEventListener("click", () => trigger("crop", { frame }));
  find(".whole").addEventListener("click", () => trigger("crop", { frame: null }));
  place({});
}

function receive() {
  if (props.value) build(props.value);
  else element.querySelector(".crop")?.replaceChildren();
}
watch("value", receive);
receive();
