/*-------------------------------------------------------------------------
 *
 * partition_range.c
 *	  Ranges of time on a grid of steps: arithmetic, and nothing else.
 *
 * No function here reads a table or a clock, takes a lock or depends on a
 * setting.  Everything is UTC, in which a day has 24 hours and nothing is
 * repeated or left out, so that a change to or from daylight saving time is
 * none: a timestamptz is counted in UTC inside, and a timestamp or a date
 * stands for its own face value.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "partition.h"

#define USECS_PER_WEEK (7 * USECS_PER_DAY)

/* 2000-01-01 was a Saturday, the grid of weeks begins two days later */
#define WEEK_OFFSET (2 * USECS_PER_DAY)

/* [1 month, 2, 3 (a quarter), 4, 6, 12 (a year)]: what a year is a multiple of */
static bool
divides(int64 part, int64 whole)
{
	return part > 0 && part <= whole && whole % part == 0;
}

/*
 * ta_step_from_interval
 *		Reads a step; false where it is none that has a grid of its own.
 *
 * Steps are hours that a day is a multiple of, a day, a week, and months that
 * a year is a multiple of.
 */
bool
ta_step_from_interval(const Interval *interval, TaStep *step)
{
	memset(step, 0, sizeof(*step));
	if (interval->month != 0)
	{
		step->months = interval->month;
		return interval->day == 0 && interval->time == 0 && divides(interval->month, MONTHS_PER_YEAR);
	}
	if (interval->day < -7 || interval->day > 7 ||
		interval->time < -USECS_PER_WEEK || interval->time > USECS_PER_WEEK)
		return false;
	step->usecs = interval->day * USECS_PER_DAY + interval->time;
	return step->usecs == USECS_PER_WEEK ||
		   (step->usecs % USECS_PER_HOUR == 0 && divides(step->usecs, USECS_PER_DAY));
}

/*
 * ta_step_finer
 *		The next narrower step whose grid has all the points of this one; false
 *		after a second.
 */
bool
ta_step_finer(const TaStep *step, TaStep *finer)
{
	TaStep result = {0, 0};

	if (step->months > 3 && step->months % 3 == 0)
		result.months = 3;
	else if (step->months > 1)
		result.months = 1;
	else if (step->months == 1 || step->usecs > USECS_PER_DAY)
		result.usecs = USECS_PER_DAY;
	else if (step->usecs > USECS_PER_HOUR)
		result.usecs = USECS_PER_HOUR;
	else if (step->usecs > USECS_PER_MINUTE)
		result.usecs = USECS_PER_MINUTE;
	else if (step->usecs > USECS_PER_SEC)
		result.usecs = USECS_PER_SEC;
	else
		return false;
	*finer = result;
	return true;
}

/* The first moment of a month, counted from the year 0; false beyond the type's range. */
static bool
month_begin(int64 month, Timestamp *result)
{
	struct pg_tm tm = {0};
	int64		 year = month / MONTHS_PER_YEAR;
	int			 rest = (int) (month % MONTHS_PER_YEAR);

	if (rest < 0)
	{
		rest += MONTHS_PER_YEAR;
		year--;
	}
	if (year < -4712 || year > 294276)
		return false;
	tm.tm_year = (int) year;
	tm.tm_mon = rest + 1;
	tm.tm_mday = 1;
	return tm2timestamp(&tm, 0, NULL, result) == 0;
}

/* The month of a finite moment, counted from the year 0. */
static int64
month_of(Timestamp at, struct pg_tm *tm)
{
	fsec_t fsec;

	if (timestamp2tm(at, NULL, tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	return (int64) tm->tm_year * MONTHS_PER_YEAR + tm->tm_mon - 1;
}

/*
 * ta_step_floor
 *		The grid's last point that is not after a finite moment; false where
 *		the type has none.
 */
bool
ta_step_floor(const TaStep *step, Timestamp at, Timestamp *floor)
{
	int64 offset = step->usecs == USECS_PER_WEEK ? WEEK_OFFSET : 0;
	int64 rest;

	if (TIMESTAMP_NOT_FINITE(at))
		return false;
	if (step->months > 0)
	{
		struct pg_tm tm;
		int64		 month = month_of(at, &tm);
		int64		 past = month % step->months;

		return month_begin(month - (past < 0 ? past + step->months : past), floor);
	}
	rest = (at - offset) % step->usecs;
	*floor = at - (rest < 0 ? rest + step->usecs : rest);
	return IS_VALID_TIMESTAMP(*floor);
}

/*
 * ta_step_next
 *		The grid's point after one; false where the type has none.
 */
bool
ta_step_next(const TaStep *step, Timestamp cell, Timestamp *next)
{
	if (step->months > 0)
	{
		struct pg_tm tm;

		return month_begin(month_of(cell, &tm) + step->months, next);
	}
	*next = cell + step->usecs;
	return IS_VALID_TIMESTAMP(*next);
}

/*
 * ta_missing_ranges
 *		The cells of the grid that touch [from, to), less what is covered.
 *
 * covered is disjoint and ascending.  A cell that is covered in part leaves
 * the rest of it, in pieces if need be, so nothing here ever overlaps.  Fills
 * missing, ascending, with at most limit ranges, and returns how many; the
 * caller sees that there may be more where it equals limit.
 */
int
ta_missing_ranges(const TaRange *covered, int ncovered, const TaStep *step,
				  Timestamp from, Timestamp to, int limit, TaRange *missing)
{
	int		  found = 0;
	int		  i = 0;
	Timestamp cell;
	Timestamp next;

	if (from >= to || !ta_step_floor(step, from, &cell))
		return 0;
	while (found < limit && cell < to && ta_step_next(step, cell, &next))
	{
		Timestamp at = cell;

		CHECK_FOR_INTERRUPTS();
		while (i < ncovered && covered[i].to <= at)
			i++;
		while (at < next && found < limit)
		{
			if (i < ncovered && covered[i].from <= at)
			{
				at = covered[i].to;
				if (at < next)
					i++;
				continue;
			}
			missing[found].from = at;
			missing[found].to = i < ncovered && covered[i].from < next ? covered[i].from : next;
			missing[found].partition = InvalidOid;
			at = missing[found].to;
			found++;
		}
		cell = next;
	}
	return found;
}

/*
 * ta_range_label
 *		What a partition's name ends in: 2024, 2024_q1, 2024_01, 2024_w03,
 *		2024_01_15, 2024_01_15_13, by the step; finer where the range begins
 *		beside the grid.
 */
char *
ta_range_label(const TaStep *step, Timestamp from)
{
	struct pg_tm   tm;
	fsec_t		   fsec;
	Timestamp	   floor;
	StringInfoData label;
	bool		   on_grid;

	if (timestamp2tm(from, NULL, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	on_grid = ta_step_floor(step, from, &floor) && floor == from;

	initStringInfo(&label);
	if (on_grid && step->usecs == USECS_PER_WEEK)
	{
		int year = tm.tm_year;
		int week = date2isoweek(tm.tm_year, tm.tm_mon, tm.tm_mday);

		year = date2isoyear(tm.tm_year, tm.tm_mon, tm.tm_mday);
		appendStringInfo(&label, "%04d_w%02d", year > 0 ? year : 1 - year, week);
		if (year <= 0)
			appendStringInfoString(&label, "_bc");
		return label.data;
	}

	appendStringInfo(&label, "%04d", tm.tm_year > 0 ? tm.tm_year : 1 - tm.tm_year);
	if (tm.tm_year <= 0)
		appendStringInfoString(&label, "_bc");
	if (on_grid && step->months == MONTHS_PER_YEAR)
		return label.data;
	if (on_grid && step->months == 3)
	{
		appendStringInfo(&label, "_q%d", (tm.tm_mon - 1) / 3 + 1);
		return label.data;
	}
	appendStringInfo(&label, "_%02d", tm.tm_mon);
	if (on_grid && step->months > 0)
		return label.data;
	if (!(step->months > 0 && tm.tm_mday == 1 && tm.tm_hour == 0 && tm.tm_min == 0 && tm.tm_sec == 0 && fsec == 0))
		appendStringInfo(&label, "_%02d", tm.tm_mday);
	if ((on_grid && step->usecs < USECS_PER_DAY) || tm.tm_hour != 0 || tm.tm_min != 0 || tm.tm_sec != 0 || fsec != 0)
		appendStringInfo(&label, "_%02d", tm.tm_hour);
	if ((on_grid && step->usecs > 0 && step->usecs < USECS_PER_HOUR) || tm.tm_min != 0 || tm.tm_sec != 0 || fsec != 0)
		appendStringInfo(&label, "_%02d", tm.tm_min);
	if ((on_grid && step->usecs > 0 && step->usecs < USECS_PER_MINUTE) || tm.tm_sec != 0 || fsec != 0)
		appendStringInfo(&label, "_%02d", tm.tm_sec);
	if (fsec != 0)
		appendStringInfo(&label, "_%06d", (int) fsec);
	return label.data;
}

/*
 * ta_bound_literal
 *		A bound as it stands in FOR VALUES, quoted: the same moment whatever
 *		the session's time zone and style of dates are.
 */
char *
ta_bound_literal(Oid key_type, Timestamp bound)
{
	struct pg_tm tm;
	fsec_t		 fsec;
	char		 text[MAXDATELEN + 1];

	if (TIMESTAMP_IS_NOBEGIN(bound))
		return pstrdup("MINVALUE");
	if (TIMESTAMP_IS_NOEND(bound))
		return pstrdup("MAXVALUE");
	if (timestamp2tm(bound, NULL, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	tm.tm_isdst = 0; /* else no zone is printed */
	if (key_type == DATEOID)
		EncodeDateOnly(&tm, USE_ISO_DATES, text);
	else
		EncodeDateTime(&tm, fsec, key_type == TIMESTAMPTZOID, 0, NULL, USE_ISO_DATES, text);
	return quote_literal_cstr(text);
}
