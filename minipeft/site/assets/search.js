// A browser starts no worker for a page that lies in a folder. Then the script of the search runs in a hidden frame, which is spoken to alike.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inner = frame.contentWindow;
      const loaded = (from) =>
        new Promise((done, failed) => {
          const script = this.inner.document.createElement("script");
          Object.assign(script, { src: from, onload: done, onerror: failed });
          this.inner.document.body.append(script);
        });
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.inner.importScripts = (...each) => each.reduce((before, from) => before.then(() => loaded(from)), Promise.resolve());
      this.ready = loaded(address);
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data })));
    }
    terminate() {
      this.inner.frameElement.remove();
    }
  };
