"""The words of a row: its columns with unit and meaning, its stages, its status and mode. Standard library only."""

from vlmbench.schema.columns import COLUMNS, Column, column_of, columns_of, label_of
from vlmbench.schema.record import SCHEMA_VERSION, Mode, Record, Status
from vlmbench.schema.stage_table import (
    COMPARED_TIMES,
    COST_STAGES,
    DECIDING_TIMES,
    DECODE_PARTS,
    HOST_PARTS,
    MODEL_PARTS,
    STAGES,
    TIME_OF_COST,
    TOTAL,
    TOTAL_PARTS,
    TOTAL_STAGES,
    Part,
    Stage,
)

__all__ = [
    "COLUMNS",
    "COMPARED_TIMES",
    "COST_STAGES",
    "DECIDING_TIMES",
    "DECODE_PARTS",
    "HOST_PARTS",
    "MODEL_PARTS",
    "SCHEMA_VERSION",
    "STAGES",
    "TIME_OF_COST",
    "TOTAL",
    "TOTAL_PARTS",
    "TOTAL_STAGES",
    "Column",
    "Mode",
    "Part",
    "Record",
    "Stage",
    "Status",
    "column_of",
    "columns_of",
    "label_of",
]
