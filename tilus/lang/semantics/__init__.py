"""What the functions of the language mean: each stub's translation to operations of the tile IR."""
