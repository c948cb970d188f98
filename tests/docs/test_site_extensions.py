"""What the hooks of the site do to a page."""

import pytest

from docs.extensions import table_code


def test_names_in_tables_break_at_underscores_and_dots_only():
    cell = "<td><code>hsv.hankel_norm(0.25)</code></td>"
    broken = "<td><code>hsv.<wbr>hankel_<wbr>norm(0.25)</code></td>"
    text = "<p><code>hsv.hankel_norm</code></p>"
    assert table_code.on_page_content(f"{text}<table><tr>{cell}</tr></table>{text}") == (
        f"{text}<table><tr>{broken}</tr></table>{text}"
    )


def formula(latex):
    pytest.importorskip("latex2mathml", reason="formulas are converted with the extra `docs`")
    from docs.extensions import mathml

    return mathml.on_page_content(rf'<span class="arithmatex">\({latex}\)</span>')


@pytest.mark.parametrize(
    ("latex", "part"),
    [
        ("|a|", '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo><mi>a</mi>'),
        (r"P \preceq Q", "<mo>&#x02AAF;</mo>"),
        (r"\operatorname{diag}(p)", '<mo lspace="0.17em" rspace="0">diag</mo><mo stretchy="false">&#x00028;</mo>'),
    ],
)
def test_spaces_of_formulas(latex, part):
    text = formula(latex)
    assert text.startswith("<math")
    assert part in text
