// What can be done with a word: one menu for every chip.

import { find, make, shown } from "./dom.js";
import * as queries from "./state.js";

const menu = find("menu");
let owner = null;

// Ways a word can go, given the search: [label, key, what becomes of the search, class].
function ways(state, word) {
  const weight = state.words?.[word];
  const forbidden = word in state.without;
  const needed = word in state.required;
  const list = [];
  if (weight) {
    list.push(["More", "+", queries.raise], ["Less", "−", queries.lower]);
    if (!needed) list.push(["Must be there", "!", queries.need]);
    list.push(["Leave out of the search", "⌫", queries.forget]);
  } else {
    list.push(["Add", "+", queries.add]);
    if (!needed) list.push(["Must be there", "!", queries.need]);
  }
  if (needed) list.push(["Need not be there", "!", queries.unneed]);
  if (forbidden) list.push(["Allow again", "⌫", queries.forget]);
  else list.push(["Never", "x", queries.forbid, "never"]);
  return list;
}

export function openMenu(chip, word, state, change) {
  closeMenu();
  owner = chip;
  chip.setAttribute("aria-expanded", "true");
  menu.replaceChildren(
    ...ways(state, word).map(([label, key, way, kind]) =>
      make("button", {
        type: "button", role: "menuitem", className: kind ?? "", "aria-keyshortcuts": key,
        onclick: () => { closeMenu(); change(way(state, word)); },
      }, label, make("kbd", { "aria-hidden": "true" }, key)),
    ),
  );
  menu.setAttribute("aria-label", shown(word));
  (chip.closest("dialog") ?? document.body).append(menu); // a dialog covers what is outside of it
  menu.showPopover();
  const at = chip.getBoundingClientRect();
  const size = menu.getBoundingClientRect();
  const below = at.bottom + 6 + size.height < innerHeight;
  menu.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
  menu.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
  menu.firstElementChild.focus();
}

export function closeMenu(refocus = false) {
  if (!owner) return;
  const chip = owner;
  owner = null;
  chip.setAttribute("aria-expanded", "false");
  menu.hidePopover();
  if (refocus) chip.focus();
  chip.dispatchEvent(new Event("menuclosed"));
}

menu.addEventListener("keydown", (event) => {
  const items = [...menu.children];
  const place = items.indexOf(document.activeElement);
  const keys = { "-": "−", Backspace: "⌫", Delete: "⌫" };
  const short = items.find((item) => item.getAttribute("aria-keyshortcuts") === (keys[event.key] ?? event.key));
  if (event.key === "ArrowDown") items[(place + 1) % items.length].focus();
  else if (event.key === "ArrowUp") items[(place + items.length - 1) % items.length].focus();
  else if (event.key === "Escape" || event.key === "Tab") closeMenu(true);
  else if (short) short.click();
  else return;
  event.preventDefault();
  event.stopPropagation();
});

addEventListener("pointerdown", (event) => {
  if (owner && !menu.contains(event.target) && !owner.contains(event.target)) closeMenu();
});
addEventListener("scroll", () => closeMenu(), { passive: true });
