#include "tools/pub/report.h"

#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <inttypes.h>
#include <jansson.h>

static double
seconds(const struct pub *pub)
{
	return (double)(pub->end_ns - pub->start_ns) / (double)CLOCK_NS_PER_S;
}

static uint64_t
finished(const struct pub *pub)
{
	return pub->accepted - pub_unanswered(pub);
}

void
report_progress(const struct pub *pub)
{
	char accepted[UNITS_TEXT], done[UNITS_TEXT], rate[UNITS_TEXT], waiting[UNITS_TEXT],
	    part[UNITS_TEXT] = "";
	uint64_t bad = pub->outcomes[TG_REJECTED] + pub->outcomes[TG_EXPIRED] + pub->outcomes[TG_UNKNOWN];
	char trouble[48] = "";

	if (pub->in->total_bytes != 0)
		snprintf(part, sizeof(part), "%3.0f %%  ",
		    100.0 * (double)pub->in->read_bytes / (double)pub->in->total_bytes);
	if (bad != 0)
		snprintf(trouble, sizeof(trouble), ", %" PRIu64 " not delivered", bad);
	cli_progress("%s%s accepted, %s answered, %s waiting, %s/s%s%s", part,
	    units_count(accepted, sizeof(accepted), pub->accepted),
	    units_count(done, sizeof(done), finished(pub)),
	    units_count(waiting, sizeof(waiting), pub_unanswered(pub)),
	    units_count(rate, sizeof(rate), (uint64_t)((double)finished(pub) / seconds(pub))), trouble,
	    tg_writable(pub->lane) == 0 ? " (no broker takes messages now)" : "");
}

void
report_summary(FILE *out, const struct pub *pub)
{
	fprintf(out,
	    "accepted=%" PRIu64 " delivered=%" PRIu64 " sent=%" PRIu64 " rejected=%" PRIu64 " expired=%" PRIu64
	    " unknown=%" PRIu64 " cancelled=%" PRIu64 " unanswered=%" PRIu64 " skipped=%" PRIu64
	    " resent=%" PRIu64 " seconds=%.3f\n",
	    pub->accepted, pub->outcomes[TG_DELIVERED], pub->outcomes[TG_SENT], pub->outcomes[TG_REJECTED],
	    pub->outcomes[TG_EXPIRED], pub->outcomes[TG_UNKNOWN], pub->outcomes[TG_CANCELLED],
	    pub_unanswered(pub), pub->skipped, pub->resent, seconds(pub));
}

void
report_latency(FILE *out, const struct pub *pub)
{
	static const double percents[] = { 50, 90, 99, 99.9 };
	char text[UNITS_TEXT];
	size_t i;

	fprintf(out, "latency");
	for (i = 0; i < sizeof(percents) / sizeof(percents[0]); i++)
		fprintf(out, " p%g=%s", percents[i],
		    units_ns(text, sizeof(text), (double)histogram_percentile(&pub->latency, percents[i])));
	fprintf(out, " max=%s", units_ns(text, sizeof(text), (double)pub->latency.max));
	fprintf(out, " rate=%s/s\n",
	    units_count(
		text, sizeof(text), seconds(pub) > 0 ? (uint64_t)((double)finished(pub) / seconds(pub)) : 0));
}

int
report_success(const struct pub *pub)
{
	return pub->skipped == 0 && !pub->broken && !pub->timed_out && !pub->stranded && !pub->interrupted &&
	       pub->outcomes[TG_DELIVERED] + pub->outcomes[TG_SENT] == pub->accepted;
}

int
report_json(FILE *out, const struct pub *pub, int success)
{
	json_t *object = json_object();
	json_t *rejections = json_array();
	int failed = 0;
	unsigned outcome;
	size_t i;

	for (i = 0; i < pub->rejection_count; i++)
		failed |= json_array_append_new(
		    rejections, json_pack("{s:s,s:I,s:s}", "from", pub->rejections[i].from, "code",
				    (json_int_t)pub->rejections[i].code, "reason", pub->rejections[i].reason));
	failed |= json_object_set_new(object, "pool", json_string(pub->options->pool));
	failed |= json_object_set_new(object, "success", json_boolean(success));
	failed |= json_object_set_new(object, "accepted", json_integer((json_int_t)pub->accepted));
	for (outcome = TG_DELIVERED; outcome <= TG_CANCELLED; outcome++)
		failed |= json_object_set_new(
		    object, tg_outcome_name(outcome), json_integer((json_int_t)pub->outcomes[outcome]));
	failed |= json_object_set_new(object, "unanswered", json_integer((json_int_t)pub_unanswered(pub)));
	failed |= json_object_set_new(object, "skipped", json_integer((json_int_t)pub->skipped));
	failed |= json_object_set_new(object, "resent", json_integer((json_int_t)pub->resent));
	failed |= json_object_set_new(object, "bytes", json_integer((json_int_t)pub->accepted_bytes));
	failed |= json_object_set_new(object, "seconds", json_real(seconds(pub)));
	failed |= json_object_set_new(object, "rejections", rejections);
	failed |= json_object_set_new(object, "latency_ns", histogram_json(&pub->latency));
	if (failed == 0 && json_dumpf(object, out, JSON_COMPACT) == 0)
		failed = fputc('\n', out) == EOF || fflush(out) != 0;
	else
		failed = 1;
	json_decref(object);
	return failed ? -1 : 0;
}
