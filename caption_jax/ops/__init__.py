"""Operations of the models: a plain reference first, then what each platform runs."""
