"""The page as data: what each run says, in sentences, tables and series for charts, of bounded size."""
