"""The least that numbers of a configuration may be."""


def at_least(group: str, values: object, **least: int) -> None:
    """Refuse numbers below their least, by the name that they are set by; None is no number."""
    for name, bound in least.items():
        value = getattr(values, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{group}.{name} is at least {bound}, got {value}")
