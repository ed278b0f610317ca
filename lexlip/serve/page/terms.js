// The search itself, word by word: a slider for each, and what is forbidden, or needed without a weight.

import { CROSS, find, icon, make, shown } from "./dom.js";
import { openMenu } from "./menu.js";
import * as queries from "./state.js";

const bar = find("query");
const FEW = 6; // sliders before "more" is pressed: a text has a long tail of words that weigh little
let all = false;
let from = 0; // what the sliders' ends were made of: they stay where they are while one is moved

export function newQuery() {
  all = false;
  from = 0;
}

function button(label, work) {
  return make("button", { type: "button", className: "x", "aria-label": label, title: label, onclick: work }, icon(CROSS));
}

function slider(state, word, change) {
  const weight = state.words[word];
  const output = make("output", {}, weight.toFixed(2));
  const input = make("input", {
    type: "range", min: 0, max: 2 * from, step: from / 50, value: weight, "aria-label": `Weight of ${shown(word)}`,
  });
  input.addEventListener("input", () => {
    output.value = Number(input.value).toFixed(2);
    change(queries.setWeight(state, word, Math.max(Number(input.value), 1e-3)), true);
  });
  input.addEventListener("change", () => change(queries.setWeight(state, word, Number(input.value))));
  const must = word in state.required;
  const name = make("button", { type: "button", className: "word", "aria-haspopup": "menu", "aria-expanded": "false" }, shown(word));
  name.addEventListener("click", () => openMenu(name, word, state, change));
  const element = make("span", { className: must ? "term must" : "term" }, name, input, output,
    button(`Leave out ${shown(word)}`, () => change(queries.forget(state, word))));
  element.dataset.word = word;
  return element;
}

function sign(state, word, text, className, label, change) {
  const element = make("span", { className: `term ${className}` }, make("span", {}, text), button(label, () => change(queries.forget(state, word))));
  element.dataset.word = word;
  return element;
}

export function showTerms(state, change) {
  const held = document.activeElement?.closest?.(".term input")?.parentElement.dataset.word;
  const piece = (word) => Number(word.startsWith("##")); // of a word: after the whole ones
  const words = Object.keys(state.words ?? {});
  words.sort((one, other) => piece(one) - piece(other) || state.words[other] - state.words[one]);
  from = Math.max(from, queries.heaviest(state) / 1.99);
  const draw = () => showTerms(state, change);
  const few = all ? words : words.slice(0, FEW);
  const rest = words.length - few.length;
  bar.replaceChildren(
    ...Object.keys(state.without).map((word) => sign(state, word, shown(word), "never", `Allow ${shown(word)}`, change)),
    ...Object.keys(state.required).filter((word) => !(word in (state.words ?? {})))
      .map((word) => sign(state, word, `+ ${shown(word)}`, "must", `${shown(word)} need not be there`, change)),
    ...Object.entries(state.penalties).map(([word, factor]) => sign(state, word, `${shown(word)} −${factor}`, "", `Forget ${shown(word)}`, change)),
    ...few.map((word) => slider(state, word, change)),
  );
  if (rest > 0) bar.append(make("button", { type: "button", className: "link", onclick: () => { all = true; draw(); } }, `${rest} more`));
  bar.hidden = !bar.children.length;
  if (held) [...bar.children].find((each) => each.dataset.word === held)?.querySelector("input")?.focus();
}

// While a slider is held the row stays as it is, or it would slip from under the finger.
export const isHeld = () => Boolean(bar.querySelector("input:active"));
