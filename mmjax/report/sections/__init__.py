"""One file per section of the page. Each has `render(run) -> Html`."""
