"""The configs that ship with the package; `configs/` of the repository is a link to this folder."""
