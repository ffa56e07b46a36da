/** Asks before a user is forgotten. */

import { byId, count } from "./dom.js";

/** @param {string} user @param {number} events @returns {Promise<boolean>} Whether to go on. */
export function confirmForget(user, events) {
  const dialog = byId("forget-dialog");
  byId("forget-text").textContent = `All that this service holds of ${user} is erased. The history shows ${count(events, "event")}.`;
  dialog.returnValue = "keep";
  dialog.showModal();
  return new Promise((settle) => {
    dialog.addEventListener("close", () => settle(dialog.returnValue === "forget"), { once: true });
  });
}
