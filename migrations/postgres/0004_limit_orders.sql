-- Limits that operators set. Orders without an end have the last moment there is as `until`.
alter table directives add column rate text;
