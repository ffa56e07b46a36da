"""The report of an audit, for people: HTML, PDF and a privacy label of one page (`files.render`)."""
