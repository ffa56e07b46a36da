/** The form: a user, a wish, categories, a length. */

import { byId, el } from "./dom.js";
import { session } from "./session.js";

/** @typedef {import("./wanted.js").Asked} Asked */

/**
 * @param {(asked: Asked) => void} onAsk On sending the form.
 * @param {() => void} onNarrow When categories or the length change.
 */
export function bindAsk(onAsk, onNarrow) {
  byId("ask").onsubmit = (event) => {
    event.preventDefault();
    onAsk(asked());
  };
  byId("length").onchange = onNarrow;
  byId("category-find").oninput = findCategories;
  byId("category-find").onkeydown = (event) => {
    if (event.key === "Enter") event.preventDefault();
  };
  byId("categories").onchange = () => {
    countCategories();
    onNarrow();
  };
  byId("category-clear").onclick = () => {
    for (const box of chosen()) box.checked = false;
    countCategories();
    onNarrow();
  };
  showRecent();
}

/** @returns {Asked} The form as it stands. */
function asked() {
  return {
    user: byId("user").value.trim(),
    wish: byId("wish").value.trim(),
    categories: chosen().map((box) => box.value),
    k: Number(byId("length").value),
  };
}

export const sendForm = () => byId("ask").requestSubmit();

/** @param {string[]} names */
export function showCategories(names) {
  const kept = new Set(chosen().map((box) => box.value));
  byId("categories").replaceChildren(
    ...names.map((name) =>
      el("label", {}, el("input", { type: "checkbox", value: name, checked: kept.has(name) }), el("span", {}, name)),
    ),
  );
  byId("category-box").hidden = names.length === 0;
  countCategories();
}

/** The ids of this session, as buttons that ask at once. */
export function showRecent() {
  const ids = session.recent;
  byId("recent").hidden = ids.length === 0;
  byId("recent").replaceChildren(
    ...ids.map((id) => {
      const pick = () => {
        byId("user").value = id;
        sendForm();
      };
      return el("button", { type: "button", className: "chip", onclick: pick }, id);
    }),
  );
}

const chosen = () => [...byId("categories").querySelectorAll("input:checked")];

function countCategories() {
  const n = chosen().length;
  byId("category-count").textContent = n ? `${n} chosen` : "all";
  byId("category-clear").disabled = n === 0;
}

function findCategories() {
  const part = byId("category-find").value.trim().toLowerCase();
  for (const label of byId("categories").children) label.hidden = !label.textContent.toLowerCase().includes(part);
}
