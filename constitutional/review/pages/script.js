"use strict";
// Without this script the pages do the same by their forms; it adds keys, the time, and that what is opened is counted.
(() => {
  const find = (selector) => document.querySelector(selector), form = find("form[data-keys]");
  document.body.classList.add("scripted");
  const heading = find("h1"), status = find("#status");
  if (status && status.textContent) {
    const notice = status.textContent;  // a live region is read out when its text changes
    status.textContent = "";
    setTimeout(() => { status.textContent = notice; }, 60);
  }
  if (!form) return;

  // An answer that comes back, as something is missing in it, holds the time until then.
  let seen = 1000 * (Number(form.seconds && form.seconds.value) || 0);
  let since = document.hidden ? null : performance.now();
  document.addEventListener("visibilitychange", () => {
    if (since !== null) seen += performance.now() - since;
    since = document.hidden ? null : performance.now();
  });
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) return event.preventDefault();
    sent = true;
    if (form.seconds) form.seconds.value = ((seen + (since === null ? 0 : performance.now() - since)) / 1000).toFixed(2);
  });

  const hidden = [...document.querySelectorAll(".hidden-text")];
  let counted = false;
  for (const part of hidden) part.addEventListener("toggle", () => {
    if (counted || !part.open) return;
    form.opened.value = "yes";  // the vote says so too, in case that the request below is lost
    counted = true;
    const body = new URLSearchParams({ form_token: form.form_token.value, assignment: form.dataset.assignment });
    fetch("/exposed", { method: "POST", body, keepalive: true });
  });

  const keysOn = find("#keys-on"), note = find("#rationale");
  if (keysOn) {
    try { keysOn.checked = localStorage.getItem("keys") !== "off"; } catch { /* no storage: keys stay on */ }
    keysOn.addEventListener("change", () => {
      try { localStorage.setItem("keys", keysOn.checked ? "on" : "off"); } catch { /* as above */ }
    });
  }
  const send = () => { const button = find("#send"); if (button) form.requestSubmit(button); };
  const choose = (key) => {
    const radio = find(`input[data-key="${key}"]`);
    if (radio) {
      const strengths = [...form.elements.strength];
      const at = radio.checked ? strengths.findIndex((strength) => strength.checked) + 1 : 0;
      if (key === "1" || key === "2") strengths[at % strengths.length].checked = true;
      radio.checked = true;
      (key === "s" ? note : radio).focus();
      return true;
    }
    const ranks = [...form.querySelectorAll("select")], empty = ranks.find((rank) => !rank.value);
    if (key === "0" && ranks.length) {
      ranks.forEach((rank) => { rank.value = ""; });
      status.textContent = "All ranks are cleared.";
    } else if (empty && [...empty.options].some((option) => option.value === key)) {
      empty.value = key;
      status.textContent = `${empty.labels[0].firstChild.textContent.trim()} has rank ${key}.`;
    } else return false;
    return true;
  };
  const principles = [...form.querySelectorAll(".principle")];
  const chooseByPrinciple = (key) => {
    const part = principles.find((one) => one.contains(document.activeElement))
      || principles.find((one) => !one.querySelector(":checked")) || principles[0];
    const radio = part && part.querySelector(`input[data-principle-key="${key}"]`);
    if (!radio) return false;
    radio.checked = true;
    const next = principles[principles.indexOf(part) + 1];
    (next ? next.querySelector(":checked") || next.querySelector("input") : find("#send")).focus();
    return true;
  };
  const actions = {
    u: () => { const undo = find("#undo"); if (undo) form.requestSubmit(undo); },
    n: () => note && note.focus(),
    h: () => { const open = hidden.some((part) => !part.open); hidden.forEach((part) => { part.open = open; }); },
    s: () => { if (!choose("s") && find("#skip")) note.value.trim() ? form.requestSubmit(find("#skip")) : note.focus(); },
    "?": () => { const keys = find("#keys"); if (keys) { keys.open = !keys.open; keys.querySelector("summary").focus(); keys.scrollIntoView({ block: "nearest" }); } },
    Enter: send,
  };
  document.addEventListener("keydown", (event) => {
    const target = event.target, writes = target.matches("textarea, input[type=text]");
    if (event.key === "Escape" && writes) return heading.focus();
    if (event.key === "Enter" && writes && (event.ctrlKey || event.metaKey)) { event.preventDefault(); return send(); }
    if (event.key === "Enter" && target === note && !note.value.trim() && find('input[value="skip"]:checked')) {
      event.preventDefault();  // a rater who does not know that Enter makes a new line here would see nothing happen
      status.textContent = "A skip needs its reason: write it here, then press Ctrl and Enter.";
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || writes || (keysOn && !keysOn.checked)) return;
    if (event.key === "Enter" && target.matches("a, button, summary, select, input[type=checkbox]")) return;
    const action = actions[event.key];
    if (action) action();
    else if (!choose(event.key) && !chooseByPrinciple(event.key)) return;
    event.preventDefault();
  });
})();
