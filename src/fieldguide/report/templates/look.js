"use strict";
(() => {
  // Decisions by file. One picture may stand in several places of the page; all of them follow.
  const store = "fieldguide-fixes-" + document.getElementById("dataset").dataset.fingerprint;
  let fixes = new Map();
  try { fixes = new Map(JSON.parse(localStorage.getItem(store) || "[]")); } catch (error) { fixes = new Map(); }
  const places = new Map();
  for (const place of document.querySelectorAll("[data-file]")) {
    const list = places.get(place.dataset.file) || [];
    list.push(place);
    places.set(place.dataset.file, list);
  }

  function show(file) {
    const fix = fixes.get(file);
    for (const place of places.get(file) || []) {
      if (place.classList.contains("tile")) {
        place.classList.toggle("drop", fix !== undefined && fix.action === "drop");
        continue;
      }
      place.classList.toggle("relabel", fix !== undefined && fix.action === "relabel");
      for (const button of place.querySelectorAll("button")) {
        const on = fix !== undefined && fix.action === button.dataset.action;
        button.classList.toggle("on", on);
        button.setAttribute("aria-pressed", String(on));
      }
      if (fix && fix.action === "relabel") place.querySelector("input").value = fix.label;
    }
  }

  function tally() {
    const number = fixes.size;
    document.getElementById("count").textContent =
      number === 0 ? "Nothing decided yet." : number + (number === 1 ? " decision." : " decisions.");
    document.getElementById("save").disabled = number === 0;
    try { localStorage.setItem(store, JSON.stringify([...fixes])); } catch (error) { /* private window: not kept */ }
  }

  function decide(place, action, label) {
    const file = place.dataset.file, old = fixes.get(file);
    if (old && old.action === action && label === undefined) fixes.delete(file);
    else fixes.set(file, {action, label: label || "", sha256: place.dataset.sha256});
    show(file);
    tally();
  }

  document.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) return decide(tile, "drop");
    const button = event.target.closest(".decide button");
    if (!button) return;
    const place = button.closest(".decide"), action = button.dataset.action, old = fixes.get(place.dataset.file);
    if (action !== "relabel") return decide(place, action);
    if (old && old.action === "relabel") return decide(place, action);
    const input = place.querySelector("input");
    decide(place, action, input.value.trim() || undefined);
    input.focus();
  });
  document.addEventListener("input", (event) => {
    const place = event.target.closest(".decide");
    if (!place) return;
    fixes.set(place.dataset.file, {action: "relabel", label: event.target.value.trim(), sha256: place.dataset.sha256});
    tally();
  });

  const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
  document.getElementById("save").addEventListener("click", () => {
    const unnamed = [...fixes].filter(([, fix]) => fix.action === "relabel" && !fix.label);
    if (unnamed.length && !confirm(unnamed.length + " pictures to relabel have no new label yet; leave them out?")) return;
    const lines = ["file,action,label,sha256"];
    for (const [file, fix] of fixes) {
      if (fix.action === "relabel" && !fix.label) continue;
      lines.push([file, fix.action, fix.action === "relabel" ? fix.label : "", fix.sha256].map(quoted).join(","));
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], {type: "text/csv"}));
    link.download = "fixes.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  document.getElementById("clear").addEventListener("click", () => {
    if (fixes.size && !confirm("Forget all decisions of this page?")) return;
    const files = [...fixes.keys()];
    fixes = new Map();
    files.forEach(show);
    tally();
  });
  for (const file of fixes.keys()) show(file);
  tally();
})();
