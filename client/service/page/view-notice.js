/** One clear line for what went wrong. */

import { byId } from "./dom.js";

let again = null;

/** @param {string} text @param {(() => void)|null} retry */
export function showNotice(text, retry) {
  again = retry;
  byId("notice-text").textContent = text;
  byId("notice-retry").hidden = retry === null;
  byId("notice").hidden = false;
}

export function hideNotice() {
  byId("notice").hidden = true;
}

export function bindNotice() {
  byId("notice-close").onclick = hideNotice;
  byId("notice-retry").onclick = () => {
    hideNotice();
    again?.();
  };
}
