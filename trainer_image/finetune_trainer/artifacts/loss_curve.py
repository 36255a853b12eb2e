"""The loss over the steps, as a picture. It draws what the history says and decides nothing."""

import io
import os
import tempfile
from pathlib import Path

from finetune_trainer.training.state import RunState

SIZE_INCHES, DOTS_PER_INCH = (7.0, 4.0), 120


def loss_curve(title: str, state: RunState) -> bytes:
    """A PNG: training and validation loss by optimizer step, the kept checkpoint marked."""
    # A container's home may be read-only, and matplotlib wants to remember its fonts.
    os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "matplotlib"))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    trained = [(event.step, event.loss) for event in state.history if event.loss is not None]
    judged = [(event.step, event.eval_loss) for event in state.history if event.eval_loss is not None]
    if trained:
        axes.plot(*zip(*trained, strict=True), color="tab:blue", linewidth=1, label="training")
    if judged:
        axes.plot(*zip(*judged, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
    if state.best_step is not None:
        axes.axvline(state.best_step, color="grey", linestyle=":", linewidth=1, label=f"kept: step {state.best_step}")
    axes.set(title=title, xlabel="optimizer step", ylabel="loss (nats per item)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)  # type: ignore[no-untyped-call]
    return picture.getvalue()
