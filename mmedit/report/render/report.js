"use strict";

// The filter of the edits. An answer (li) knows its method and how that method's edit came out.
function filterEdits(form) {
  const names = [...new Set([...form.querySelectorAll("input")].map((input) => input.name))];
  const cases = [...document.querySelectorAll(".case")].map((element) => ({
    element,
    questions: [...element.querySelectorAll(".question")].map((question) => ({
      element: question,
      answers: [...question.querySelectorAll(".answers > li")],
    })),
  }));
  for (const one of cases) {
    const answers = one.questions.flatMap((question) => question.answers);
    one.edits = [...new Map(answers.map((li) => [li.dataset.method, { ...li.dataset }])).values()];
  }
  const status = document.getElementById("shown");

  const chosen = () => Object.fromEntries(new FormData(form));
  const fits = (edit, choice) => names.every((name) => !choice[name] || choice[name] === edit[name]);
  const count = (choice) => cases.filter((one) => one.edits.some((edit) => fits(edit, choice))).length;

  function show() {
    const choice = chosen();
    for (const one of cases) {
      for (const question of one.questions) {
        for (const li of question.answers) li.hidden = !fits(li.dataset, choice);
        question.element.hidden = question.answers.every((li) => li.hidden);
      }
      one.element.hidden = one.questions.every((question) => question.element.hidden);
    }
    for (const input of form.querySelectorAll("input")) {
      const number = count({ ...choice, [input.name]: input.value });
      const label = input.closest("label");
      label.querySelector(".count").textContent = number;
      label.classList.toggle("nothing", number === 0);
    }
    const number = count(choice);
    const filtered = names.some((name) => choice[name]);
    form.querySelector("button").hidden = !filtered;
    status.textContent = `${number} of ${cases.length} edits shown` +
      (number ? "" : ": no edit has this outcome. Choose another one, or show all.");
  }

  // The address keeps the choice, so that a filtered page can be reloaded and linked to.
  function remember() {
    const kept = Object.entries(chosen()).filter(([, value]) => value);
    const hash = new URLSearchParams(kept).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    form.reset();
    for (const input of form.querySelectorAll("input"))
      if (input.value && kept.get(input.name) === input.value) input.checked = true;
    show();
  }

  form.addEventListener("change", () => { show(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    form.reset();
    show();
    remember();
    form.querySelector("input:checked").focus(); // the button, which had the focus, is hidden now
  });
  addEventListener("hashchange", recall);
  form.hidden = false;
  recall();
}

// A table that is wider than its box says so, and where its other columns are.
function showMoreColumns(box) {
  const scroll = box.querySelector(".scroll");
  function mark() {
    const hidden = scroll.scrollWidth - scroll.clientWidth;
    box.classList.toggle("wide", hidden > 1);
    box.classList.toggle("more", hidden - scroll.scrollLeft > 1);
  }
  scroll.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(scroll);
  mark();
}

for (const form of document.querySelectorAll("form.filter")) filterEdits(form);
for (const box of document.querySelectorAll(".box")) showMoreColumns(box);
