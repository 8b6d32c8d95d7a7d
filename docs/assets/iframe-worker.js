// A page opened from disk may not start a Worker; the search of the site needs one. Here it runs in a frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const own = new URL(url, location.href);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessageOut = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      // What a worker's script calls: importScripts, postMessage, and messages that come in.
      inside.importScripts = (...names) =>
        Promise.all(
          names.map(
            (name) =>
              new Promise((resolve, reject) => {
                const script = inside.document.createElement("script");
                script.src = new URL(name, own).href;
                script.onload = resolve;
                script.onerror = reject;
                inside.document.body.append(script);
              }),
          ),
        );
      this.deliver = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      inside.postMessage = inside.postMessageOut;
      inside.importScripts(own).then(() => {
        this.ready = true;
        this.waiting.splice(0).forEach(this.deliver);
      });
    }
    postMessage(data) {
      if (this.ready) this.deliver(data);
      else this.waiting.push(data);
    }
    terminate() {}
  };
}
