"""The audit of what many models declare: run.py audits, journal.py resumes, members.py says which models."""

from ...answers.audit import AuditRecord as AuditRecord
from ...answers.audit import Finding as Finding
from ...report.audit import HUB as HUB
from ...report.audit import markdown as markdown
from ...report.audit import sarif as sarif
from ...report.audit import summary as summary
from ...report.audit import table as table
from ...report.audit import tsv as tsv
from ...report.audit import tsv_head as tsv_head
from .members import Member as Member
from .members import members as members
from .run import audit as audit
