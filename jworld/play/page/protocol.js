// The connection: JSON messages both ways, and frames as binary messages. docs/play.md describes both.

const HEADER = 23;
const FORMATS = ["raw", "jpeg", "png", "webp"];

/** Read a binary message: its header, and the bytes of the image. */
export function unpack(buffer) {
  const view = new DataView(buffer);
  const length = view.getUint8(22);
  return {
    version: view.getUint8(0),
    format: FORMATS[view.getUint8(1)],
    width: view.getUint16(2, true),
    height: view.getUint16(4, true),
    step: view.getUint32(6, true),
    frame: view.getUint32(10, true),
    time: view.getFloat64(14, true),
    action: new TextDecoder().decode(new Uint8Array(buffer, HEADER, length)),
    content: new Uint8Array(buffer, HEADER + length),
  };
}

/** Decode the image of a frame to something that a canvas can draw. */
export function decode(frame) {
  if (frame.format !== "raw") {
    return createImageBitmap(new Blob([frame.content], { type: `image/${frame.format}` }));
  }
  const image = new ImageData(frame.width, frame.height);
  for (let i = 0, j = 0; i < frame.content.length; i += 3, j += 4) {
    image.data.set([frame.content[i], frame.content[i + 1], frame.content[i + 2], 255], j);
  }
  return createImageBitmap(image);
}

/** A connection that opens again by itself, and then continues the session if it was short. */
export class Connection {
  constructor(handlers) {
    this.handlers = handlers;
    this.player = "";
    this.delay = 500;
    this.open();
  }

  open() {
    const query = new URLSearchParams(location.search);
    query.set("player", this.player);
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(`${scheme}//${location.host}/socket?${query}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => {
      if (typeof data !== "string") {
        this.handlers.frame(unpack(data));
        return;
      }
      const message = JSON.parse(data);
      if (message.type === "welcome") {
        this.player = message.id;
        this.delay = 500;
      }
      this.handlers.message(message);
    };
    this.socket.onclose = (event) => {
      this.handlers.closed(event.reason);
      setTimeout(() => this.open(), this.delay);
      this.delay = Math.min(this.delay * 2, 10000);
    };
  }

  send(type, values = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...values }));
  }

  sendImage(buffer) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(buffer);
  }
}
