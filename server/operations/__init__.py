"""Operations: named, versioned functions from a source file to a sink file, each with a parameter schema."""
