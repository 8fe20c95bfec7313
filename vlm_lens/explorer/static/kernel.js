// The widget: the kernel is the source, and answers in messages.

function kernel(model) {
  const view = Math.random().toString(36).slice(2);
  const waiting = new Map();
  let asked = 0;
  const answered = (message, buffers) => {
    const call = waiting.get(message.id);
    if (!call) return; // another view's
    waiting.delete(message.id);
    // Buffers come as views into a larger one, where floats may not be aligned.
    const floats = buffers.map(
      (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)),
    );
    if (message.error) call.reject(new Error(message.error));
    else call.resolve({ ...message, buffers: floats });
  };
  model.on("msg:custom", answered);
  const set = (key, value) => {
    model.set(key, value);
    model.save_changes();
  };
  return {
    ask: (kind, args) =>
      new Promise((resolve, reject) => {
        const id = `${view}:${asked++}`;
        waiting.set(id, { resolve, reject });
        model.send({ id, kind, ...args });
      }),
    get shown() { return model.get("_shown"); },
    set shown(neuron) { set("_shown", neuron); },
    get kept() { return model.get("_kept"); },
    set kept(neurons) { set("_kept", neurons); },
    onChange(tell) {
      model.on("change:_shown", tell);
      model.on("change:_kept", tell);
      return () => {
        model.off("change:_shown", tell);
        model.off("change:_kept", tell);
        model.off("msg:custom", answered);
      };
    },
  };
}

function render({ model, el }) {
  const page = new Page(el, kernel(model));
  page.start();
  return () => page.close();
}

export default { render };
