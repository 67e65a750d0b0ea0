"""The sections on selection: what was kept over time, and how often each image was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from unixkd.report import charts
from unixkd.report.figures import NONE, percent, plural
from unixkd.report.histograms import by_score
from unixkd.report.markup import figure, html_table, section
from unixkd.report.records import Epoch, Kept, Picture, Run
from unixkd.report.runs import Group, Spread, curve
from unixkd.report.svg import Style
from unixkd.report.words import hero_of


def what_was_kept(groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """Hard share, mean score and histograms of kept and dropped images; empty if nothing was dropped."""
    selecting = [group for group in groups if _drops(group)]
    hard, scores = [], []
    for number, group in enumerate(selecting):
        style = styles[group.method]
        pair = _of(lambda kept: kept.hard_kept), _of(lambda kept: kept.hard_dropped)
        hard.append((group, charts.kept_and_dropped(group, style, *pair, "hard images, %", f"hard{number}")))
        pair = _of(lambda kept: kept.score_kept), _of(lambda kept: kept.score_dropped)
        scores.append((group, charts.kept_and_dropped(group, style, *pair, "mean score", f"score{number}")))
    body = _charts("Hard images: those the student got wrong at that moment", hard)
    body += _charts("Mean score (each method’s own scale; higher is less certain)", scores)
    body += by_score(selecting, styles)
    if not body:
        return ""
    note = '<p class="note">A method that selects well keeps more of what is hard than it drops.</p>'
    return section("What was kept", note + body + _last_epoch(selecting, styles))


def how_often(groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """Histograms of how often each image was kept, and images from both ends."""
    figures, rows, shown = [], [], []
    for number, group in enumerate(groups):
        shares = kept_shares(group)
        if shares is None:
            continue
        shown.append(styles[group.method])
        figures.append(
            figure(charts.times_kept(group, styles[group.method], shares, f"times{number}"), group.method)
        )
        mean = sum(times * share for times, share in enumerate(shares))
        never, always = f"{100 * shares[0]:.1f} %", f"{100 * shares[-1]:.1f} %"
        rows.append([group.method, f"{mean:.1f} of {len(shares) - 1}", never, always])
    if not figures:
        return ""
    headers = ["method", "times kept, mean", "never kept", "kept every time"]
    table = html_table("How often images were kept", headers, rows, shown)
    note = '<p class="note">Share of the training images by the number of epochs that kept them.</p>'
    body = f'{note}<div class="charts small">{"".join(figures)}</div>{table}{_thumbnails(groups)}'
    return section("How often each image was kept", body)


def kept_shares(group: Group) -> list[float] | None:
    """Share of the images that were kept 0, 1, 2, ... times, mean over the runs; None if unknown."""
    selections = [run.selection for run in group.runs if run.selection and sum(run.selection.images)]
    if not selections:
        return None
    top = max(max(max(one.times_kept), one.epochs) for one in selections)
    shares = [0.0] * (top + 1)
    for one in selections:
        for times, images in zip(one.times_kept, one.images, strict=True):
            shares[times] += images / sum(one.images) / len(selections)
    return shares


def _of(value: Callable[[Kept], float | None]) -> Callable[[Epoch], float | None]:
    return lambda epoch: None if epoch.kept is None else value(epoch.kept)


def _drops(group: Group) -> bool:
    kept = [line.kept.kept for run in group.runs for line in run.history if line.kept]
    return any(share is not None and share < 1 for share in kept)


def _charts(title: str, drawn: Sequence[tuple[Group, str | None]]) -> str:
    figures = [figure(svg, group.method) for group, svg in drawn if svg is not None]
    if not figures:
        return ""
    return f'<h3>{escape(title)}</h3><div class="charts small">{"".join(figures)}</div>'


def _last_epoch(groups: Sequence[Group], styles: dict[str, Style]) -> str:
    columns: list[tuple[str, Callable[[Kept], float | None]]] = [
        ("images\nkept", lambda kept: kept.kept),
        ("training images\nused at least once", lambda kept: kept.distinct),
        ("hard among\nkept", lambda kept: kept.hard_kept),
        ("hard among\ndropped", lambda kept: kept.hard_dropped),
    ]
    rows = []
    for group in groups:
        ends = [_last(group, _of(value)) for _, value in columns]
        rows.append(
            [group.method, *(NONE if end is None else f"{percent(end, 1, sd=False)} %" for end in ends)]
        )
    headers = ["last epoch", *(header for header, _ in columns)]
    caption = "What was kept in the last epoch"
    return html_table(caption, headers, rows, [styles[group.method] for group in groups])


def _last(group: Group, value: Callable[[Epoch], float | None]) -> Spread | None:
    points = curve(group, value)
    return points[-1][1] if points else None


def _thumbnails(groups: Sequence[Group]) -> str:
    """Of one run: of the method the report is about, else of the first that has any."""
    shown = [hero_of(groups), *groups]
    pictured = (run for group in shown for run in group.runs if run.selection and run.selection.most_kept)
    run: Run | None = next(pictured, None)
    if run is None or run.selection is None:
        return ""
    whose, selection = f"{run.method}, seed {run.seed}", run.selection
    never = dict(zip(selection.times_kept, selection.images, strict=True)).get(0, 0)
    least = "Kept least often"
    if never:
        others = any(picture.times for picture in selection.least_kept)
        more = "; then those kept least often" if others else f", {len(selection.least_kept)} of them shown"
        least = f"Never kept: {plural(never, 'image')}{more}"
    return (
        _row(f"Kept most often ({whose})", selection.most_kept, _times)
        + _row(f"{least} ({whose})", selection.least_kept, _times)
        + _row(f"Mixed most strongly ({whose})", selection.most_mixed, _share)
    )


def _row(title: str, pictures: Sequence[Picture], short: Callable[[Picture], str]) -> str:
    """Pictures with what they are and a short figure below each."""
    cells = []
    for picture in pictures:
        label = picture.label if picture.label is not None else f"#{picture.index}"
        mixed = f", {_share(picture)} of its rows was given to partners" if picture.mixed else ""
        said = escape(f"training image {picture.index}, {label}, kept {picture.times} times{mixed}")
        cells.append(
            f'<figure title="{said}"><img alt="{said}" src="data:image/png;base64,{escape(picture.png)}">'
            f"<figcaption>{escape(label)} · {short(picture)}</figcaption></figure>"
        )
    return f'<h3>{escape(title)}</h3><div class="thumbs">{"".join(cells)}</div>' if cells else ""


def _times(picture: Picture) -> str:
    return f"{picture.times}×"


def _share(picture: Picture) -> str:
    """How much of the image's rows, on average, was its partners'."""
    return f"{100 * (picture.mixed or 0) / max(1, picture.times):.0f} %"
