"""What the figures have in common: colours and lines of the methods, and what a function that draws one returns."""

from matplotlib.figure import Figure

from sb3_dmpo.plots.common import PALETTE

#: Methods of Figures 3 and 4, in the order of their curves.
COMPARED = ("AWAC", "mixAWAC", "LP-AWAC", "DMPO")
#: A method has one colour and one kind of line in all figures.
STYLES = {
    method: (PALETTE[i % 7], ("-", "--")[i // 7])
    for i, method in enumerate(
        ("DMPO", "AWAC", "mixAWAC", "LP-AWAC", "TD3+BC", "IQL", "infoDMPO", "BC", "CQL", "LAPO", "Diffusion QL")
    )
}
STYLES["BC"] = ("#777777", "--")
#: What a figure is drawn into, by its file name; None with a reason where there are no data.
Drawing = tuple[Figure | None, str]


def style(method: str) -> dict[str, str]:
    """
    Colour and kind of line.

    :param method: name of the method
    """
    colour, line = STYLES.get(method, ("#999999", ":"))
    return {"color": colour, "linestyle": line}
