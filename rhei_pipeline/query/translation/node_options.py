"""Refuses nodes with options that no rule of the translation reads."""

from sqlglot import exp

from rhei_pipeline.query.translation.meaning import StaysWithSourceError

#: What the rules read of every node, or what says nothing of its meaning.
_READ = {"this", "expression", "expressions", "_type", "type"}
_READ_OF: dict[type[exp.Expr], set[str]] = {
    exp.Literal: {"is_string"},
    exp.Column: {"table", "db", "catalog"},
    exp.Is: {"negate"},
    exp.In: {"negate", "query", "field", "unnest"},
    exp.Between: {"negate", "low", "high", "symmetric"},
    exp.Like: {"negate"},
    exp.ILike: {"negate"},
    exp.Div: {"typed", "safe"},
    exp.DPipe: {"safe"},
    exp.Case: {"ifs", "default"},
    exp.If: {"true", "false"},
    exp.Cast: {"to"},
    exp.Count: {"big_int"},
    exp.Window: {"partition_by", "order", "over", "spec", "alias", "first"},
    exp.Substring: {"start", "length"},
    exp.Trim: {"position", "collation"},
    exp.Replace: {"replacement"},
    exp.StrPosition: {"substr", "position", "occurrence"},
    exp.Least: {"ignore_nulls"},
    exp.Greatest: {"ignore_nulls"},
    exp.Ordered: {"desc", "nulls_first", "with_fill"},
    exp.Table: {"db", "catalog", "alias"},
    exp.Subquery: {"alias"},
    exp.Upper: set(),
    exp.Bracket: {"offset"},
    exp.TimeToStr: {"format"},
    exp.Interval: {"unit"},
}


def refuse_unread(node: exp.Expr) -> None:
    """Refuse a node with options that the translation does not read: parsers gain new ones."""
    known = _READ | _READ_OF.get(type(node), set())
    unread = [name for name, value in node.args.items() if value and name not in known]
    if unread:
        raise StaysWithSourceError(
            f"its {node.key} has an option {unread[0]!r} that is not translated"
        )
