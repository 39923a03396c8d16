/*-------------------------------------------------------------------------
 *
 * techally.c
 *	  The library: its magic block, and each room's init.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "audit.h"
#include "compat.h"
#include "partition.h"
#include "partition_archive.h"
#include "progress.h"
#include "row_reader.h"
#include "row_writer.h"
#include "search.h"
#include "soft_delete.h"
#include "spi_util.h"
#include "state_machine.h"
#include "store.h"
#include "stripes.h"
#include "trigger_util.h"
#include "worker.h"

PG_MODULE_MAGIC;

void _PG_init(void);

void
_PG_init(void)
{
	ta_spi_init();
	ta_trigger_util_init();
	ta_row_writer_init();
	ta_row_reader_init();
	ta_progress_init();
	ta_store_init();
	ta_state_machine_init();
	ta_partition_init();
	ta_archive_init();
	ta_soft_delete_init();
	ta_stripes_init();
	ta_worker_init();
	ta_audit_init();
	ta_search_text_init();
	ta_search_cache_init();

	MarkGUCPrefixReserved("techally");
}
