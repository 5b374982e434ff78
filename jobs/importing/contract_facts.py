"""Describe the contract of a network for people."""

from imagemill.models.contract import Contract

EXAMPLE_SIDE = 512
"""Side of the image, in pixels, whose latents are described."""
TILING = {
    "exact": "exact: tiles with an overlap of {halo} pixels give the result of the whole image",
    "approximate": "approximate: tiles overlap by {halo} pixels and are blended",
    "never": "never: whole images only, because a pixel may depend on all others",
}


def contract_facts(contract: Contract) -> list[tuple[str, str]]:
    """Return a contract as lines of a name and a value."""
    low, high = contract.input_range
    facts = [("images", f"{'RGB' if contract.channels == 3 else 'each colour plane by itself'}, values {low:g} to {high:g}")]
    multiple = f", padded to multiples of {contract.size_multiple} pixels" if contract.size_multiple > 1 else ""
    smallest = f", padded to at least {contract.min_side} pixels" if contract.min_side > contract.size_multiple else ""
    facts.append(("sizes", f"any{multiple}{smallest}"))
    if contract.latent is None:
        facts.append(("scale", f"×{contract.scale}" if contract.scale > 1 else "same size"))
        facts.append(("noise level", "taken for each image" if contract.noise_level else "not taken"))
        if contract.mask:
            facts.append(("mask", "taken for each image: 1 where a pixel is missing"))
    else:
        facts += latent_facts(contract)
    facts.append(("tiling", TILING[contract.tiling].format(halo=contract.halo)))
    facts.append(("dtypes", ", ".join(contract.dtypes)))
    if contract.bytes_per_pixel is not None:
        facts.append(("memory", f"{contract.bytes_per_pixel:,} bytes for each pixel"))
    return facts


def latent_facts(contract: Contract) -> list[tuple[str, str]]:
    """Return what a contract says about latents."""
    latent = contract.latent
    if latent is None:
        return []
    cells = -(-EXAMPLE_SIDE // contract.size_multiple) * contract.size_multiple // latent.factor
    kind = "distribution: mode or sample" if latent.is_distribution else "one value each"
    shape = f"{latent.channels}×{cells}×{cells} floats for {EXAMPLE_SIDE}×{EXAMPLE_SIDE} pixels ({kind})"
    factors = [
        f"{key} {value:g}" for key in ("scaling_factor", "shift_factor") if (value := getattr(latent, key)) is not None
    ]
    return [("latents", shape), *([("unscaled", f"stored latents are unscaled; {', '.join(factors)}")] if factors else [])]
