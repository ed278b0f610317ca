// Words of the vocabulary under the search box, for the word that is being written.

import { suggest } from "./api.js";
import { after, find, make } from "./dom.js";

const input = find("text");
const list = find("suggestions");
const MOST = 7;
let chosen = -1;
let asking = null;

// The word at the cursor, without a sign before it: [begin, end, word].
function wordAt() {
  const end = input.selectionStart;
  if (/\S/.test(input.value[end] ?? "")) return null;
  const word = /[\p{L}\p{N}]+$/u.exec(input.value.slice(0, end))?.[0];
  return word ? [end - word.length, end, word] : null;
}

export function closeSuggestions() {
  asking?.abort();
  chosen = -1;
  list.hidden = true;
  input.setAttribute("aria-expanded", "false");
  input.removeAttribute("aria-activedescendant");
}

function mark(place) {
  const items = [...list.children];
  chosen = (place + items.length + 1) % (items.length + 1);
  items.forEach((item, number) => item.setAttribute("aria-selected", String(number === chosen)));
  if (items[chosen]) input.setAttribute("aria-activedescendant", items[chosen].id);
  else input.removeAttribute("aria-activedescendant");
}

function take(word) {
  const at = wordAt();
  if (!at) return;
  input.setRangeText(word, at[0], at[1], "end");
  closeSuggestions();
  input.dispatchEvent(new Event("input"));
  closeSuggestions();
  input.focus();
}

const ask = after(90, async () => {
  const at = wordAt();
  if (!at || document.activeElement !== input) return closeSuggestions();
  asking?.abort();
  asking = new AbortController();
  let words;
  try {
    ({ words } = await suggest(at[2], MOST, asking.signal));
  } catch {
    return;
  }
  if (!words.length || (words.length === 1 && words[0].word === at[2])) return closeSuggestions();
  list.replaceChildren(...words.map(({ word, documents }, number) => {
    const item = make("li", { id: `suggestion-${number}`, role: "option", "aria-selected": "false" },
      word, make("small", {}, documents.toLocaleString("en")));
    item.dataset.word = word;
    item.addEventListener("pointerdown", (event) => { event.preventDefault(); take(word); });
    return item;
  }));
  chosen = -1;
  list.hidden = false;
  input.setAttribute("aria-expanded", "true");
});

input.addEventListener("input", ask);
input.addEventListener("blur", () => { ask.cancel(); closeSuggestions(); });
input.addEventListener("keydown", (event) => {
  if (list.hidden) return;
  if (event.key === "ArrowDown") mark(chosen + 1);
  else if (event.key === "ArrowUp") mark(chosen < 0 ? list.children.length - 1 : chosen - 1);
  else if (event.key === "Escape") closeSuggestions();
  else if ((event.key === "Enter" || event.key === "Tab") && list.children[chosen]) take(list.children[chosen].dataset.word);
  else return;
  event.preventDefault();
});

export function stopSuggesting() {
  ask.cancel();
  closeSuggestions();
}
