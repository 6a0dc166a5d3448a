// Held keys from the keyboard, the caps on the page, touch pads and gamepads, as one set.

const DEAD = 0.4;

/** Held keys by source, so that releasing one source leaves the others alone. */
export class Controls {
  constructor(changed) {
    this.changed = changed;
    this.sources = new Map();
    this.keys = [];
    this.sent = "";
    window.addEventListener("keydown", (event) => this.onKey(event, true));
    window.addEventListener("keyup", (event) => this.onKey(event, false));
    for (const name of ["blur", "pagehide"]) window.addEventListener(name, () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
    for (const pad of document.querySelectorAll(".pad")) this.listenPad(pad);
    setInterval(() => this.poll(), 30);
  }

  setKeys(keys) {
    this.keys = keys;
  }

  held() {
    const names = new Set();
    for (const set of this.sources.values()) set.forEach((name) => names.add(name));
    return [...names];
  }

  set(source, names) {
    this.sources.set(source, new Set(names));
    const text = this.held().sort().join("+");
    if (text !== this.sent) {
      this.sent = text;
      this.changed(this.held());
    }
  }

  press(source, name, on) {
    const names = new Set(this.sources.get(source) ?? []);
    if (on) names.add(name);
    else names.delete(name);
    this.set(source, names);
  }

  release() {
    this.sources.clear();
    this.set("keyboard", []);
  }

  onKey(event, down) {
    const isText = /^(TEXTAREA|SELECT)$/.test(event.target.tagName) || (event.target.tagName === "INPUT" && event.target.type !== "range");
    if (isText && down) return;
    const key = this.keys.find((each) => each.codes.includes(event.code));
    if (!key || (down && (event.ctrlKey || event.metaKey || event.altKey))) return;
    event.preventDefault();
    if (!event.repeat) this.press("keyboard", key.name, down);
  }

  /** Keys of the axes "x0", "y0", ... with these values between -1 and 1. */
  ofAxes(axes) {
    return this.keys
      .filter((key) => key.axis && Math.sign(axes[key.axis.slice(0, 2)] ?? 0) * Math.abs(axes[key.axis.slice(0, 2)] ?? 0) * (key.axis[2] === "+" ? 1 : -1) > DEAD)
      .map((key) => key.name);
  }

  listenPad(pad) {
    const stick = pad.dataset.stick;
    const knob = pad.firstElementChild;
    const move = (event) => {
      const box = pad.getBoundingClientRect();
      const x = Math.max(-1, Math.min(1, (2 * (event.clientX - box.left)) / box.width - 1));
      const y = Math.max(-1, Math.min(1, (2 * (event.clientY - box.top)) / box.height - 1));
      knob.style.transform = `translate(${x * 32}px, ${y * 32}px)`;
      this.set(`pad${stick}`, this.ofAxes({ [`x${stick}`]: x, [`y${stick}`]: y }));
    };
    const end = () => {
      knob.style.transform = "";
      this.set(`pad${stick}`, []);
    };
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      move(event);
    });
    pad.addEventListener("pointermove", (event) => pad.hasPointerCapture(event.pointerId) && move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) pad.addEventListener(name, end);
  }

  poll() {
    const gamepad = navigator.getGamepads?.().find((each) => each?.connected);
    // A gamepad that is unplugged releases its keys.
    if (!gamepad) {
      if (this.sources.get("gamepad")?.size) this.set("gamepad", []);
      return;
    }
    const button = (index) => (gamepad.buttons[index]?.pressed ? 1 : 0);
    const [x0 = 0, y0 = 0, x1 = 0, y1 = 0] = gamepad.axes;
    const names = this.ofAxes({ x0: x0 + button(15) - button(14), y0: y0 + button(13) - button(12), x1, y1 });
    // The first button is a key without an axis, such as that of a gripper.
    if (button(0)) names.push(...this.keys.filter((key) => !key.axis).slice(0, 1).map((key) => key.name));
    this.set("gamepad", document.hasFocus() ? names : []);
  }
}
