"""Images from measurements of them: one file a method, and `methods` lists them."""
