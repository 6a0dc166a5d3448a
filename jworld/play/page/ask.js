// Questions about the image that is shown, and their answers, which arrive piece by piece.

const KEPT = 4;

export class Ask {
  /** `send(text, frame)` sends a question, and one without text ends the answer. */
  constructor(section, screen, { send, frame }) {
    this.screen = screen;
    this.send = send;
    this.frame = frame;
    this.form = section.querySelector("form");
    this.field = section.querySelector("input");
    this.button = section.querySelector("button");
    this.list = section.querySelector("ol");
    this.running = null;
    this.numbers = new Map();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.field.addEventListener("input", () => this.label());
    // The keys of the world work again.
    this.field.addEventListener("keydown", (event) => event.key === "Escape" && this.screen.focus());
  }

  submit() {
    const text = this.field.value.trim();
    if (!text) {
      if (this.running !== null) this.send("", 0);
      return;
    }
    if (this.frame() < 0) return;
    this.pending = this.entry(text);
    this.send(text, this.frame());
    this.field.value = "";
    this.label();
    this.screen.focus();
  }

  /** Make an entry with the image that the question is about. */
  entry(text) {
    const item = document.createElement("li");
    const image = document.createElement("canvas");
    image.width = 64;
    image.height = Math.max(1, Math.round((64 * this.screen.height) / this.screen.width));
    image.getContext("2d").drawImage(this.screen, 0, 0, image.width, image.height);
    const [question, answer] = ["question", "answer"].map((name) => {
      const part = document.createElement("p");
      part.className = name;
      return part;
    });
    question.textContent = text;
    item.append(image, question, answer);
    return item;
  }

  /** The server begins to answer the question that was sent last. */
  begin({ question }) {
    if (!this.pending) return;
    this.list.prepend(this.pending);
    while (this.list.children.length > KEPT) this.list.lastChild.remove();
    this.numbers.set(question, this.pending);
    this.numbers.delete(question - KEPT);
    this.running = question;
    this.pending.classList.add("running");
    this.label();
  }

  add({ question, text, done, stopped, tokens }) {
    const item = this.numbers.get(question);
    if (!item) return;
    const answer = item.querySelector(".answer");
    answer.textContent += text;
    if (!done) return;
    item.classList.remove("running");
    if (stopped) answer.textContent += " (stopped)";
    else if (!answer.textContent.trim()) answer.textContent = `(no words in ${tokens} tokens)`;
    if (this.running === question) this.running = null;
    this.label();
  }

  /** The button ends a running answer unless another question is written. */
  label() {
    this.button.textContent = this.running !== null && !this.field.value.trim() ? "stop" : "ask";
  }

  /** Forget what runs: the connection was lost. */
  end() {
    for (const item of this.list.children) item.classList.remove("running");
    this.running = this.pending = null;
    this.numbers.clear();
    this.label();
  }
}
