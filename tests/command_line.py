"""Options as a user types them."""


def words(**options: object) -> list[str]:
    """
    >>> words(max_tokens=8, data="my.csv")
    ['--max-tokens', '8', '--data', 'my.csv']
    """
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
