"""Small heads after chosen blocks, each of which answers from what its block made."""
