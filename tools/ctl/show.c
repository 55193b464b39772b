#include "tools/ctl/show.h"

#include "tools/common/units.h"
#include "tools/ctl/table.h"

#include <inttypes.h>
#include <string.h>

#define COLUMNS(list) (list), sizeof(list) / sizeof((list)[0])

/* ---- values ---- */

static uint64_t
number(const json_t *row, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(row, key));

	return value > 0 ? (uint64_t)value : 0;
}

static const char *
string(const json_t *row, const char *key)
{
	const char *text = json_string_value(json_object_get(row, key));

	return text != NULL ? text : "";
}

static int
truth(const json_t *row, const char *key)
{
	return json_is_true(json_object_get(row, key));
}

/* 2.1 s, 45 s, 12 min, 3 h 12 min, 4 d 6 h */
static char *
duration(char *text, size_t size, uint64_t ms)
{
	uint64_t s = ms / 1000;

	if (ms < 1000)
		snprintf(text, size, "%" PRIu64 " ms", ms);
	else if (s < 10)
		snprintf(text, size, "%.1f s", (double)ms / 1000);
	else if (s < 120)
		snprintf(text, size, "%" PRIu64 " s", s);
	else if (s < 7200)
		snprintf(text, size, "%" PRIu64 " min", s / 60);
	else if (s < 48 * 3600)
		snprintf(text, size, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
	else
		snprintf(text, size, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
	return text;
}

/* Exact as long as it stays readable; --json has every digit. */
static char *
brief(char *text, size_t size, uint64_t value)
{
	static const char *const words[] = { "M", "G", "T" };
	double scaled = (double)value / 1e6;
	size_t i = 0;

	if (value < 10000000)
		return units_count(text, size, value);
	for (; scaled >= 1000 && i < 2; i++)
		scaled /= 1000;
	snprintf(text, size, "%.2f%s", scaled, words[i]);
	return text;
}

/* ---- cells ---- */

static void
cell_count(struct table *table, enum paint paint, uint64_t value)
{
	char text[UNITS_TEXT];

	table_cell(table, value == 0 ? PAINT_DIM : paint, brief(text, sizeof(text), value));
}

static void
cell_bytes(struct table *table, uint64_t value)
{
	char text[UNITS_TEXT];

	table_cell(table, value == 0 ? PAINT_DIM : PAINT_NONE, units_bytes(text, sizeof(text), value));
}

static void
cell_duration(struct table *table, enum paint paint, uint64_t ms)
{
	char text[UNITS_TEXT];

	table_cell(table, paint, duration(text, sizeof(text), ms));
}

static void
cell_of(struct table *table, uint64_t ready, uint64_t all)
{
	table_cellf(table,
	    ready == all ? PAINT_GOOD
	    : ready > 0  ? PAINT_WARN
			 : PAINT_BAD,
	    "%" PRIu64 "/%" PRIu64, ready, all);
}

static uint64_t
failed(const json_t *row)
{
	return number(row, "rejected") + number(row, "expired") + number(row, "unknown") +
	       number(row, "cancelled");
}

/* The row of the sample before that has the same value at `key`. It is looked for from place `hint` on:
 * rows keep their order, so that is where it is, or shortly behind if others have gone. */
static const json_t *
row_before(const struct sample *sample, const char *list, const char *key, const json_t *row, size_t hint)
{
	const json_t *rows = json_object_get(sample->before, list), *wanted = json_object_get(row, key);
	size_t count = json_array_size(rows);

	for (size_t i = 0; i < count; i++) {
		const json_t *other = json_array_get(rows, (hint + i) % count);
		if (json_equal(json_object_get(other, key), wanted))
			return other;
	}
	return NULL;
}

/* So much a second since the sample before. */
static void
cell_rate(struct table *table, const struct sample *sample, const json_t *row, const json_t *before,
    const char *key, int bytes)
{
	uint64_t now = number(row, key), then = number(before, key);
	char text[UNITS_TEXT];

	if (before == NULL || sample->seconds <= 0 || now < then) {
		table_cell(table, PAINT_DIM, "-");
		return;
	}
	uint64_t rate = (uint64_t)((double)(now - then) / sample->seconds + 0.5);
	if (bytes)
		units_bytes(text, sizeof(text), rate);
	else
		brief(text, sizeof(text), rate);
	table_cellf(table, rate == 0 ? PAINT_DIM : PAINT_NONE, "%s/s", text);
}

static void
finish(struct table *table, FILE *out, const char *nothing)
{
	if (table->cell_count == 0)
		fprintf(out, "%s\n", nothing);
	else
		table_print(table, out);
	table_fini(table);
}

/* Below a table: the failure of one of its rows. */
static void
cause(FILE *out, const char *of, const char *what, const char *why)
{
	if (why[0] == '\0')
		return;
	table_paint(out, PAINT_BAD, of);
	fputs(" ", out);
	table_paint(out, PAINT_NONE, what);
	fputs(": ", out);
	table_paint(out, PAINT_NONE, why);
	fputc('\n', out);
}

/* ---- status ---- */

static void
line(FILE *out, const char *name, enum paint paint, const char *text)
{
	fprintf(out, "%-10s ", name);
	table_paint(out, paint, text);
	fputc('\n', out);
}

void
show_status(const struct sample *sample, FILE *out)
{
	const json_t *s = json_object_get(sample->answer, "status");
	uint64_t ready = number(s, "links_ready"), links = number(s, "links");
	uint64_t accepted = number(s, "accepted"), finished = number(s, "finished");
	char a[UNITS_TEXT], b[UNITS_TEXT], c[UNITS_TEXT], text[200];

	snprintf(text, sizeof(text), "%s, pid %" PRIu64 ", up %s%s", string(s, "version"), number(s, "pid"),
	    duration(a, sizeof(a), number(s, "uptime_ms")),
	    truth(s, "stopping") ? ", stopping: drains its lanes" : "");
	line(out, "tidegated", truth(s, "stopping") ? PAINT_WARN : PAINT_NONE, text);
	snprintf(text, sizeof(text), "%" PRIu64 " of %" PRIu64 " ready in %" PRIu64 " pool%s", ready, links,
	    number(s, "pools"), number(s, "pools") == 1 ? "" : "s");
	line(out, "links", ready == links ? PAINT_GOOD : ready > 0 ? PAINT_WARN : PAINT_BAD, text);
	snprintf(text, sizeof(text), "%s attached with %s lanes",
	    units_count(a, sizeof(a), number(s, "clients")), units_count(b, sizeof(b), number(s, "lanes")));
	line(out, "clients", PAINT_NONE, text);
	snprintf(text, sizeof(text), "%s accepted, %s answered, %s under way",
	    units_count(a, sizeof(a), accepted), units_count(b, sizeof(b), finished),
	    units_count(c, sizeof(c), accepted > finished ? accepted - finished : 0));
	line(out, "messages", PAINT_NONE, text);
	if (sample->rates && sample->before != NULL && sample->seconds > 0) {
		const json_t *before = json_object_get(sample->before, "status");
		double in = (double)(accepted - number(before, "accepted")) / sample->seconds;
		double done = (double)(finished - number(before, "finished")) / sample->seconds;
		snprintf(text, sizeof(text), "%.0f/s accepted, %.0f/s answered", in, done);
		line(out, "rate", PAINT_NONE, text);
	}
	snprintf(text, sizeof(text), "%s resident, lanes of %s",
	    units_bytes(a, sizeof(a), number(s, "resident_bytes")),
	    units_bytes(b, sizeof(b), number(s, "lane_memory_bytes")));
	line(out, "memory", PAINT_NONE, text);
}

/* ---- pools ---- */

static void
pools_heading(struct table *table, int rates)
{
	static const struct table_column plain[] = { { "POOL", 0 }, { "PROTOCOL", 0 }, { "BROKERS", 1 },
		{ "TAKES", 0 }, { "LANES", 1 }, { "WAIT", 1 }, { "ACCEPTED", 1 }, { "DELIVERED", 1 },
		{ "SENT", 1 }, { "REJECTED", 1 }, { "EXPIRED", 1 }, { "UNKNOWN", 1 }, { "RESENT", 1 } };
	static const struct table_column watched[] = { { "POOL", 0 }, { "BROKERS", 1 }, { "TAKES", 0 },
		{ "LANES", 1 }, { "WAIT", 1 }, { "IN", 1 }, { "BYTES IN", 1 }, { "DELIVERED", 1 },
		{ "SENT", 1 }, { "FAILED", 1 }, { "RESENT", 1 } };

	if (rates)
		table_init(table, COLUMNS(watched));
	else
		table_init(table, COLUMNS(plain));
}

static void
pool_row(struct table *table, const struct sample *sample, const json_t *pool, size_t place)
{
	const json_t *before = row_before(sample, "pools", "name", pool, place);

	table_cell(table, PAINT_NONE, string(pool, "name"));
	if (!sample->rates)
		table_cell(table, PAINT_NONE, string(pool, "protocol"));
	cell_of(table, number(pool, "brokers_ready"), number(pool, "brokers"));
	table_cell(
	    table, truth(pool, "writable") ? PAINT_GOOD : PAINT_BAD, truth(pool, "writable") ? "yes" : "no");
	cell_count(table, PAINT_NONE, number(pool, "lanes"));
	cell_count(table, PAINT_WARN, number(pool, "lanes_waiting"));
	if (sample->rates) {
		cell_rate(table, sample, pool, before, "accepted", 0);
		cell_rate(table, sample, pool, before, "bytes", 1);
		cell_rate(table, sample, pool, before, "delivered", 0);
		cell_rate(table, sample, pool, before, "sent", 0);
		cell_count(table, PAINT_BAD, failed(pool));
		cell_rate(table, sample, pool, before, "resent", 0);
		return;
	}
	cell_count(table, PAINT_NONE, number(pool, "accepted"));
	cell_count(table, PAINT_NONE, number(pool, "delivered"));
	cell_count(table, PAINT_NONE, number(pool, "sent"));
	cell_count(table, PAINT_BAD, number(pool, "rejected"));
	cell_count(table, PAINT_BAD, number(pool, "expired"));
	cell_count(table, PAINT_BAD, number(pool, "unknown"));
	cell_count(table, PAINT_WARN, number(pool, "resent"));
}

void
show_pools(const struct sample *sample, FILE *out)
{
	const json_t *rows = json_object_get(sample->answer, "pools");
	struct table table;
	size_t i, f;
	json_t *row, *failing;

	pools_heading(&table, sample->rates);
	json_array_foreach (rows, i, row)
		pool_row(&table, sample, row, i);
	finish(&table, out, "There are no pools.");
	json_array_foreach (rows, i, row)
		json_array_foreach (json_object_get(row, "failing"), f, failing)
			cause(out, string(row, "name"), string(failing, "broker"), string(failing, "why"));
}

/* ---- brokers ---- */

void
show_brokers(const struct sample *sample, FILE *out)
{
	static const struct table_column columns[] = { { "POOL", 0 }, { "BROKER", 0 }, { "WEIGHT", 1 },
		{ "SHARE", 1 }, { "LINKS", 1 }, { "BREAKER", 0 }, { "FAILED", 1 }, { "DELIVERED", 1 },
		{ "SENT", 1 }, { "RESENT", 1 } };
	struct table table;
	size_t i;
	json_t *row;

	table_init(&table, COLUMNS(columns));
	json_array_foreach (json_object_get(sample->answer, "brokers"), i, row) {
		const json_t *before = row_before(sample, "brokers", "id", row, i);
		const char *breaker = string(row, "breaker");
		table_cell(&table, PAINT_NONE, string(row, "pool"));
		table_cell(&table, PAINT_NONE, string(row, "address"));
		cell_count(&table, PAINT_NONE, number(row, "weight"));
		table_cellf(&table, PAINT_NONE, "%" PRIu64 "%%", number(row, "share_thousandths") / 10);
		cell_of(&table, number(row, "links_ready"), number(row, "links"));
		table_cell(&table,
		    strcmp(breaker, "closed") == 0       ? PAINT_GOOD
		    : strcmp(breaker, "slow-start") == 0 ? PAINT_WARN
							 : PAINT_BAD,
		    breaker);
		cell_count(&table, PAINT_WARN, number(row, "failures"));
		if (sample->rates) {
			cell_rate(&table, sample, row, before, "delivered", 0);
			cell_rate(&table, sample, row, before, "sent", 0);
			cell_rate(&table, sample, row, before, "resent", 0);
		} else {
			cell_count(&table, PAINT_NONE, number(row, "delivered"));
			cell_count(&table, PAINT_NONE, number(row, "sent"));
			cell_count(&table, PAINT_WARN, number(row, "resent"));
		}
	}
	finish(&table, out, "There are no brokers.");
	json_array_foreach (json_object_get(sample->answer, "brokers"), i, row) {
		if (number(row, "links_elsewhere") > 0) {
			char text[80];
			snprintf(text, sizeof(text),
			    "%" PRIu64 " of its links at addresses of its cluster (see links)",
			    number(row, "links_elsewhere"));
			cause(out, string(row, "pool"), string(row, "address"), text);
		}
		if (number(row, "links_ready") < number(row, "links"))
			cause(out, string(row, "pool"), string(row, "address"), string(row, "why"));
	}
}

/* ---- links ---- */

static enum paint
state_paint(const char *state)
{
	static const char *const bad[] = { "suspect", "failed", "backoff" };

	if (strcmp(state, "ready") == 0)
		return PAINT_GOOD;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (strcmp(state, bad[i]) == 0)
			return PAINT_BAD;
	return PAINT_WARN;
}

static const char *
takes(const json_t *link)
{
	if (truth(link, "writable"))
		return "yes";
	return truth(link, "blocked") ? "blocked" : strcmp(string(link, "state"), "ready") == 0 ? "full" : "no";
}

void
show_links(const struct sample *sample, FILE *out)
{
	static const struct table_column plain[] = { { "LINK", 1 }, { "POOL", 0 }, { "BROKER", 0 },
		{ "SPEAKS", 0 }, { "STATE", 0 }, { "SINCE", 1 }, { "TAKES", 0 }, { "FLIGHT", 1 },
		{ "UNSENT", 1 }, { "LANES", 1 }, { "PROBE", 1 }, { "READ", 1 } };
	static const struct table_column watched[] = { { "LINK", 1 }, { "POOL", 0 }, { "BROKER", 0 },
		{ "STATE", 0 }, { "SINCE", 1 }, { "TAKES", 0 }, { "FLIGHT", 1 }, { "UNSENT", 1 },
		{ "LANES", 1 }, { "PROBE", 1 }, { "OUT", 1 }, { "BYTES OUT", 1 } };
	struct table table;
	size_t i;
	json_t *row;

	if (sample->rates)
		table_init(&table, COLUMNS(watched));
	else
		table_init(&table, COLUMNS(plain));
	json_array_foreach (json_object_get(sample->answer, "links"), i, row) {
		const json_t *before = row_before(sample, "links", "id", row, i);
		const char *state = string(row, "state");
		char text[UNITS_TEXT];
		table_cellf(&table, PAINT_NONE, "%" PRIu64, number(row, "id"));
		table_cell(&table, PAINT_NONE, string(row, "pool"));
		if (string(row, "endpoint")[0] != '\0')
			table_cellf(
			    &table, PAINT_WARN, "%s at %s", string(row, "broker"), string(row, "endpoint"));
		else
			table_cell(&table, PAINT_NONE, string(row, "broker"));
		if (!sample->rates) {
			const char *speaks = string(row, "speaks");
			table_cell(&table, PAINT_DIM, speaks[0] != '\0' ? speaks : "-");
		}
		table_cell(&table, state_paint(state), state);
		cell_duration(&table, PAINT_NONE, number(row, "state_ms"));
		table_cell(&table, truth(row, "writable") ? PAINT_GOOD : PAINT_WARN, takes(row));
		cell_count(&table, PAINT_NONE, number(row, "outstanding"));
		cell_bytes(&table, number(row, "unsent_bytes"));
		cell_count(&table, PAINT_NONE, number(row, "lanes"));
		if (number(row, "probe_rtt_us") > 0)
			table_cell(&table, PAINT_NONE,
			    units_ns(text, sizeof(text), (double)number(row, "probe_rtt_us") * 1000));
		else
			table_cell(&table, PAINT_DIM, "-");
		if (sample->rates) {
			cell_rate(&table, sample, row, before, "framed", 0);
			cell_rate(&table, sample, row, before, "bytes_out", 1);
		} else {
			cell_duration(&table, PAINT_NONE, number(row, "last_read_ms"));
		}
	}
	finish(&table, out, "There are no links.");
	json_array_foreach (json_object_get(sample->answer, "links"), i, row)
		if (strcmp(string(row, "state"), "ready") != 0) {
			char text[UNITS_TEXT + 8];
			snprintf(text, sizeof(text), "link %" PRIu64, number(row, "id"));
			cause(out, text, string(row, "broker"), string(row, "why"));
		}
}

/* ---- lanes ---- */

static enum paint
place_paint(const char *place)
{
	if (strcmp(place, "asleep") == 0)
		return PAINT_DIM;
	return strcmp(place, "active") == 0 ? PAINT_GOOD : PAINT_WARN;
}

void
show_lanes(const struct sample *sample, FILE *out)
{
	static const struct table_column plain[] = { { "LANE", 1 }, { "POOL", 0 }, { "PID", 1 }, { "USER", 1 },
		{ "PLACE", 0 }, { "LINK", 1 }, { "WAIT", 1 }, { "FLIGHT", 1 }, { "OLDEST", 1 }, { "USED", 1 },
		{ "RECORDS", 1 }, { "FAILED", 1 }, { "PROGRAM", 0 } };
	static const struct table_column watched[] = { { "LANE", 1 }, { "POOL", 0 }, { "PID", 1 },
		{ "USER", 1 }, { "PLACE", 0 }, { "LINK", 1 }, { "WAIT", 1 }, { "FLIGHT", 1 }, { "OLDEST", 1 },
		{ "USED", 1 }, { "IN", 1 }, { "BYTES IN", 1 }, { "FAILED", 1 }, { "PROGRAM", 0 } };
	struct table table;
	size_t i;
	json_t *row;

	if (sample->rates)
		table_init(&table, COLUMNS(watched));
	else
		table_init(&table, COLUMNS(plain));
	json_array_foreach (json_object_get(sample->answer, "lanes"), i, row) {
		const json_t *before = row_before(sample, "lanes", "id", row, i);
		int orphan = truth(row, "orphan");
		char text[UNITS_TEXT];
		table_cellf(&table, PAINT_NONE, "%" PRIu64, number(row, "id"));
		table_cell(&table, PAINT_NONE, string(row, "pool"));
		table_cellf(&table, orphan ? PAINT_WARN : PAINT_NONE, "%s%" PRIu64, orphan ? "orphan " : "",
		    number(row, "pid"));
		table_cellf(&table, PAINT_NONE, "%" PRIu64, number(row, "uid"));
		table_cell(&table, place_paint(string(row, "place")), string(row, "place"));
		if (json_is_integer(json_object_get(row, "link")))
			table_cellf(&table, PAINT_NONE, "%" PRIu64, number(row, "link"));
		else
			table_cell(&table, PAINT_DIM, "-");
		table_cellf(&table, number(row, "waiting") == 0 ? PAINT_DIM : PAINT_WARN, "%s%s",
		    brief(text, sizeof(text), number(row, "waiting")), truth(row, "waiting_more") ? "+" : "");
		cell_count(&table, PAINT_NONE, number(row, "in_flight"));
		if (json_is_integer(json_object_get(row, "oldest_ms")))
			cell_duration(&table, PAINT_NONE, number(row, "oldest_ms"));
		else
			table_cell(&table, PAINT_DIM, "-");
		if (number(row, "ring_bytes") > 0)
			table_cellf(&table, PAINT_NONE, "%" PRIu64 "%%",
			    number(row, "waiting_bytes") * 100 / number(row, "ring_bytes"));
		else
			table_cell(&table, PAINT_DIM, "-");
		if (sample->rates) {
			cell_rate(&table, sample, row, before, "records", 0);
			cell_rate(&table, sample, row, before, "bytes", 1);
		} else {
			cell_count(&table, PAINT_NONE, number(row, "records"));
		}
		cell_count(&table, PAINT_BAD, failed(row));
		table_cell(&table, PAINT_NONE, string(row, "name"));
	}
	finish(&table, out, "There are no lanes.");
}

/* ---- users ---- */

void
show_users(const struct sample *sample, FILE *out)
{
	static const struct table_column columns[] = { { "USER", 1 }, { "CONNECTIONS", 1 }, { "LANES", 1 },
		{ "ORPHANS", 1 }, { "MEMORY", 1 }, { "DESCRIPTORS", 1 }, { "REFUSED", 1 } };
	struct table table;
	size_t i;
	json_t *row;

	table_init(&table, COLUMNS(columns));
	json_array_foreach (json_object_get(sample->answer, "users"), i, row) {
		char text[UNITS_TEXT];
		table_cellf(&table, PAINT_NONE, "%" PRIu64, number(row, "uid"));
		cell_count(&table, PAINT_NONE, number(row, "connections"));
		cell_count(&table, PAINT_NONE, number(row, "lanes"));
		cell_count(&table, PAINT_WARN, number(row, "orphans"));
		table_cell(&table, PAINT_NONE, units_bytes(text, sizeof(text), number(row, "memory_bytes")));
		cell_count(&table, PAINT_NONE, number(row, "descriptors"));
		cell_count(&table, PAINT_BAD, number(row, "refused"));
	}
	finish(&table, out, "No user has anything here.");
}

/* ---- stats ---- */

static void
stats_value(const char *path, const json_t *value, const json_t *before, const struct sample *sample, FILE *out)
{
	const char *key;
	json_t *inner;
	char text[UNITS_TEXT], name[256];

	if (json_is_object(value)) {
		json_object_foreach ((json_t *)(uintptr_t)value, key, inner) {
			snprintf(name, sizeof(name), "%s%s%s", path, path[0] != '\0' ? "." : "", key);
			stats_value(name, inner, json_object_get(before, key), sample, out);
		}
		return;
	}
	table_paint(out, PAINT_NONE, path);
	fprintf(out, "%*s ", (int)(strlen(path) < 32 ? 32 - strlen(path) : 0), "");
	if (!json_is_integer(value)) {
		fputs("-\n", out);
		return;
	}
	uint64_t n = (uint64_t)json_integer_value(value);
	fprintf(out, "%17s", units_count(text, sizeof(text), n));
	if (n >= 1024 && (strstr(path, "bytes") != NULL || strstr(path, "jemalloc") != NULL))
		fprintf(out, "  %s", units_bytes(text, sizeof(text), n));
	if (sample->rates && before != NULL && sample->seconds > 0) {
		double rate = ((double)n - (double)json_integer_value(before)) / sample->seconds;
		if (rate != 0)
			fprintf(out, "  %+.1f/s", rate);
	}
	fputc('\n', out);
}

void
show_stats(const struct sample *sample, FILE *out)
{
	stats_value("", json_object_get(sample->answer, "stats"), json_object_get(sample->before, "stats"),
	    sample, out);
}

/* ---- why, events ---- */

void
show_why(const struct sample *sample, FILE *out)
{
	size_t i;
	json_t *row;

	json_array_foreach (json_object_get(sample->answer, "why"), i, row) {
		table_paint(out, truth(row, "waits") ? PAINT_WARN : PAINT_NONE, string(row, "text"));
		fputc('\n', out);
	}
}

void
show_event(const json_t *event, FILE *out)
{
	const char *level = string(event, "level");

	fprintf(out, "%" PRIu64 " ", number(event, "seq"));
	table_paint(out,
	    strcmp(level, "error") == 0  ? PAINT_BAD
	    : strcmp(level, "warn") == 0 ? PAINT_WARN
					 : PAINT_NONE,
	    string(event, "line"));
	fputc('\n', out);
}
