// Memory view: thumbnails of the past frames that a step was conditioned on, and the cameras from above.

const KEPT = 3000;
const FRAMES_PER_LATENT = 4;

export class Memory {
  constructor(map, context) {
    this.map = map;
    this.context = context;
    this.clear();
  }

  clear() {
    this.thumbnails = new Map();
    this.cameras = [];
    this.waiting = [];
    this.latest = null;
    this.context.replaceChildren();
  }

  /** Keep a thumbnail of a frame if it is the last one of a latent frame, or the first one that was shown of it. */
  async keep(frame, screen) {
    const latent = Math.ceil(frame.frame / FRAMES_PER_LATENT);
    if (frame.frame % FRAMES_PER_LATENT && this.thumbnails.has(latent)) return;
    const height = Math.max(1, Math.round((48 * screen.height) / screen.width));
    const image = await createImageBitmap(screen, { resizeWidth: 48, resizeHeight: height });
    this.thumbnails.get(latent)?.close();
    this.thumbnails.set(latent, image);
    if (this.thumbnails.size > KEPT) {
      const oldest = [...this.thumbnails.keys()].find((latent) => latent > FRAMES_PER_LATENT);
      this.thumbnails.get(oldest)?.close();
      this.thumbnails.delete(oldest);
    }
  }

  /** Take the cameras of a computed step, whose frames are shown later. */
  add(step, memory) {
    this.waiting.push([step, memory]);
    if (this.waiting.length > 8) this.waiting.shift();
  }

  /** Show the cameras and the context of a step whose first frame is shown. */
  show(step) {
    while (this.waiting.length && this.waiting[0][0] <= step) this.take(this.waiting.shift()[1]);
    this.draw();
  }

  take(memory) {
    memory.cameras.forEach((camera, index) => (this.cameras[memory.first + index - this.offset()] = camera));
    if (this.cameras.length > KEPT) this.dropped = (this.dropped ?? 0) + this.cameras.splice(0, this.cameras.length - KEPT).length;
    this.latest = memory;
  }

  offset() {
    if (!this.cameras.length) this.dropped = 0;
    return this.dropped ?? 0;
  }

  draw() {
    if (!this.latest) return;
    this.drawMap();
    this.context.replaceChildren(
      ...this.latest.context.map((latent) => {
        const canvas = document.createElement("canvas");
        const image = this.thumbnails.get(latent);
        canvas.width = image?.width ?? 48;
        canvas.height = image?.height ?? 36;
        canvas.title = `latent ${latent}`;
        if (image) canvas.getContext("2d").drawImage(image, 0, 0);
        return canvas;
      }),
    );
  }

  drawMap() {
    const { width, height } = this.map;
    const pen = this.map.getContext("2d");
    pen.clearRect(0, 0, width, height);
    const known = this.cameras.filter(Boolean);
    if (!known.length) return;
    const xs = known.map((camera) => camera[0]);
    const zs = known.map((camera) => camera[1]);
    const span = Math.max(2, Math.max(...xs) - Math.min(...xs), ((Math.max(...zs) - Math.min(...zs)) * width) / height) * 1.25;
    const scale = width / span;
    const middle = [(Math.max(...xs) + Math.min(...xs)) / 2, (Math.max(...zs) + Math.min(...zs)) / 2];
    const place = ([x, z]) => [width / 2 + (x - middle[0]) * scale, height / 2 - (z - middle[1]) * scale];
    pen.strokeStyle = "#55607a";
    pen.beginPath();
    known.forEach((camera, index) => (index ? pen.lineTo(...place(camera)) : pen.moveTo(...place(camera))));
    pen.stroke();
    const arrow = (camera, color, length) => {
      const [x, y] = place(camera);
      pen.strokeStyle = pen.fillStyle = color;
      pen.beginPath();
      pen.arc(x, y, 2.5, 0, 7);
      pen.fill();
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x + camera[2] * length, y - camera[3] * length);
      pen.stroke();
    };
    for (const latent of this.latest.context) {
      const camera = this.cameras[latent - this.offset()];
      if (camera) arrow(camera, "#7ddc8c", 9);
    }
    arrow(known[known.length - 1], "#ffd479", 16);
  }
}
