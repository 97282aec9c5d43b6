/* py_layout.c -- LAYOUT: the numbers of layout.h as Python sees them. No logic, no shared bytes.
 *
 * `slot` -> bytes of struct shmrt_slot, `slot.phase` -> offset of the field, `SLOT_READY` -> value of a
 * constant. A read-only mapping; tests/layout.snap freezes it together with LAYOUT_VERSION.
 */
#include "py_module.h"

#include "layout.h"
#include "lane.h"
#include "slots.h"

#define SIZE(name) {#name, sizeof(struct shmrt_##name)}
#define FIELD(name, field) {#name "." #field, offsetof(struct shmrt_##name, field)}
#define CONSTANT(name) {#name, (uint64_t)SHMRT_##name}

static const struct {
	const char *name;
	uint64_t value;
} numbers[] = {
	SIZE(segment_header),
	FIELD(segment_header, magic),
	FIELD(segment_header, layout_version),
	FIELD(segment_header, kind),
	FIELD(segment_header, size),
	FIELD(segment_header, token),
	FIELD(segment_header, creator),
	FIELD(segment_header, created_ns),

	SIZE(control),
	FIELD(control, slot_count),
	FIELD(control, root_generation),
	FIELD(control, calls_offset),
	FIELD(control, names_offset),
	FIELD(control, call_count),
	FIELD(control, name_count),
	FIELD(control, extended),
	FIELD(control, slots),

	SIZE(slot),
	FIELD(slot, state),
	FIELD(slot, epoch),
	FIELD(slot, pid),
	FIELD(slot, wait_status),
	FIELD(slot, owner),
	FIELD(slot, pool),
	FIELD(slot, worker),
	FIELD(slot, oom),
	FIELD(slot, spawn_ns),
	FIELD(slot, phase),
	FIELD(slot, task_id),
	FIELD(slot, task_start_ns),
	FIELD(slot, started),
	FIELD(slot, done),
	FIELD(slot, busy_ns),
	FIELD(slot, logs_dropped),
	FIELD(slot, blocked_ns),
	FIELD(slot, beat_ns),
	FIELD(slot, beats),
	FIELD(slot, main_cpu_ns),
	FIELD(slot, rss_bytes),
	FIELD(slot, death),
	FIELD(slot, bell),
	FIELD(slot, bell_rings),
	FIELD(slot, kill_reason),
	FIELD(slot, stop_requested),
	FIELD(slot, kill_task_id),
	FIELD(slot, control_count),

	SIZE(lane_shared),
	FIELD(lane_shared, tail),
	FIELD(lane_shared, head),
	FIELD(lane_shared, data),

	SIZE(lanes),
	FIELD(lanes, pair_count),
	FIELD(lanes, task_capacity),
	FIELD(lanes, result_capacity),

	SIZE(record_header),
	FIELD(record_header, size),
	FIELD(record_header, kind),
	FIELD(record_header, flags),
	FIELD(record_header, block_count),
	FIELD(record_header, id),
	FIELD(record_header, inline_size),
	FIELD(record_header, function),
	FIELD(record_header, attempt),
	FIELD(record_header, claim),

	SIZE(block_reference),
	FIELD(block_reference, block),
	FIELD(block_reference, size),
	FIELD(block_reference, generation),
	FIELD(block_reference, flags),

	SIZE(arena_shared),
	FIELD(arena_shared, granule_count),
	FIELD(arena_shared, granule_words_offset),
	FIELD(arena_shared, block_words_offset),
	FIELD(arena_shared, data_offset),
	FIELD(arena_shared, limit_bytes),
	FIELD(arena_shared, reserved_granules),
	FIELD(arena_shared, granules_high),
	FIELD(arena_shared, hints),

	SIZE(ring_slot),
	FIELD(ring_slot, state),
	FIELD(ring_slot, owner),
	FIELD(ring_slot, inline_size),
	FIELD(ring_slot, block_count),
	FIELD(ring_slot, flags),
	FIELD(ring_slot, sequence),
	FIELD(ring_slot, put_ns),

	SIZE(ring_shared),
	FIELD(ring_shared, slots),
	FIELD(ring_shared, slot_bytes),
	FIELD(ring_shared, slot_stride),
	FIELD(ring_shared, slots_offset),
	FIELD(ring_shared, arena_offset),
	FIELD(ring_shared, start),
	FIELD(ring_shared, on_full),
	FIELD(ring_shared, mutex),
	FIELD(ring_shared, tail),
	FIELD(ring_shared, intent),
	FIELD(ring_shared, messages_in),
	FIELD(ring_shared, bytes_in),
	FIELD(ring_shared, high_water),
	FIELD(ring_shared, dropped),
	FIELD(ring_shared, blocked_full_ns),
	FIELD(ring_shared, closed),
	FIELD(ring_shared, refused),
	FIELD(ring_shared, expired),
	FIELD(ring_shared, abandoned),
	FIELD(ring_shared, cleared),
	FIELD(ring_shared, told_ns),
	FIELD(ring_shared, told_refused),
	FIELD(ring_shared, told_dropped),
	FIELD(ring_shared, told_expired),
	FIELD(ring_shared, head),
	FIELD(ring_shared, next),
	FIELD(ring_shared, leased),
	FIELD(ring_shared, returned),
	FIELD(ring_shared, holes),
	FIELD(ring_shared, messages_out),
	FIELD(ring_shared, bytes_out),
	FIELD(ring_shared, blocked_empty_ns),
	FIELD(ring_shared, repairs),
	FIELD(ring_shared, bell_not_empty),
	FIELD(ring_shared, bell_not_full),

	SIZE(call_slot),
	FIELD(call_slot, word),
	FIELD(call_slot, caller),
	FIELD(call_slot, bell_index),
	FIELD(call_slot, target),
	FIELD(call_slot, deadline_ns),
	FIELD(call_slot, bell),
	FIELD(call_slot, status),
	FIELD(call_slot, inline_size),
	FIELD(call_slot, block_count),
	FIELD(call_slot, flags),
	FIELD(call_slot, arena),
	FIELD(call_slot, body),

	SIZE(mail_envelope),
	FIELD(mail_envelope, kind),
	FIELD(mail_envelope, name_size),
	FIELD(mail_envelope, index),
	FIELD(mail_envelope, generation),
	FIELD(mail_envelope, sender),
	FIELD(mail_envelope, deadline_ns),

	SIZE(name_entry),
	FIELD(name_entry, sequence),
	FIELD(name_entry, name_size),
	FIELD(name_entry, value_sizes),
	FIELD(name_entry, name),
	FIELD(name_entry, values),

	SIZE(names),
	FIELD(names, count),
	FIELD(names, changes),
	FIELD(names, high),

	CONSTANT(MAGIC),
	CONSTANT(LINE),
	CONSTANT(SEGMENT_CONTROL),
	CONSTANT(SEGMENT_LANES),
	CONSTANT(SEGMENT_ARENA),
	CONSTANT(SEGMENT_RING),
	CONSTANT(SEGMENT_BOARD),
	CONSTANT(SLOTS_MAX),
	CONSTANT(SLOT_PROGRAM),
	CONSTANT(SLOT_ROOT),
	CONSTANT(SLOT_FIRST_WORKER),
	CONSTANT(SLOT_EMPTY),
	CONSTANT(SLOT_STARTING),
	CONSTANT(SLOT_READY),
	CONSTANT(SLOT_GONE),
	CONSTANT(PHASE_BOOT),
	CONSTANT(PHASE_PARKED),
	CONSTANT(PHASE_SPIN),
	CONSTANT(PHASE_DECODE),
	CONSTANT(PHASE_RUN),
	CONSTANT(PHASE_ENCODE),
	CONSTANT(PHASE_BLOCKED),
	CONSTANT(PHASE_STOPPING),
	CONSTANT(KILL_NONE),
	CONSTANT(KILL_TIMEOUT),
	CONSTANT(KILL_CANCEL),
	CONSTANT(KILL_CHAOS),
	CONSTANT(KILL_RECYCLE),
	CONSTANT(KILL_SHRINK),
	CONSTANT(KILL_STOP),
	CONSTANT(KILL_ROOT_LOST),
	CONSTANT(KILL_RESTART),
	CONSTANT(BEAT_NS),
	CONSTANT(LANE_CAPACITY_MIN),
	CONSTANT(RECORD_PAD),
	CONSTANT(RECORD_TASK),
	CONSTANT(RECORD_FUNCTION),
	CONSTANT(RECORD_FORGET),
	CONSTANT(RECORD_STOP),
	CONSTANT(RECORD_RESULT),
	CONSTANT(RECORD_ERROR),
	CONSTANT(RECORD_LOG),
	CONSTANT(RECORD_EXIT),
	CONSTANT(RECORD_START_FAILED),
	CONSTANT(RECORD_EXPIRED),
	CONSTANT(ATTEMPT_DEADLINE),
	CONSTANT(MESSAGE_BODY_IN_BLOCK),
	CONSTANT(MESSAGE_READ_ONLY),
	CONSTANT(MESSAGE_HAS_PICKLE),
	CONSTANT(MESSAGE_HAS_ARRAY),
	CONSTANT(GRANULE_BYTES),
	CONSTANT(BLOCK_BYTES_MIN),
	CONSTANT(BLOCKS_PER_GRANULE),
	CONSTANT(CLASS_BYTES_MAX),
	CONSTANT(CLASS_COUNT),
	CONSTANT(CLASS_RUN),
	CONSTANT(GRANULE_FREE),
	CONSTANT(GRANULE_CLAIMED),
	CONSTANT(GRANULE_HEAD),
	CONSTANT(GRANULE_BODY),
	CONSTANT(BLOCK_FREE),
	CONSTANT(BLOCK_WRITING),
	CONSTANT(BLOCK_SENT),
	CONSTANT(BLOCK_HELD),
	CONSTANT(REFERENCE_READ_ONLY),
	CONSTANT(REFERENCE_RETURNED),
	CONSTANT(BLOCK_KEPT),
	CONSTANT(BLOCK_QUEUED),
	CONSTANT(RING_BLOCK),
	CONSTANT(RING_RAISE),
	CONSTANT(RING_DROP_OLDEST),
	CONSTANT(RING_DROP_NEWEST),
	CONSTANT(RING_SLOT_FREE),
	CONSTANT(RING_SLOT_FULL),
	CONSTANT(RING_SLOT_LEASED),
	CONSTANT(RING_SLOT_DONE),
	CONSTANT(RING_SLOT_TAKING),
	CONSTANT(RING_SLOT_FREEING),
	CONSTANT(RING_SLOT_DROPPING),
	CONSTANT(RING_SLOT_MOVING),
	CONSTANT(CALLS_DEFAULT),
	CONSTANT(CALLS_MAX),
	CONSTANT(CALL_INLINE),
	CONSTANT(CALL_FREE),
	CONSTANT(CALL_IDLE),
	CONSTANT(CALL_WAITING),
	CONSTANT(CALL_TAKEN),
	CONSTANT(CALL_WRITING),
	CONSTANT(CALL_REPLIED),
	CONSTANT(CALL_DROPPED),
	CONSTANT(CALL_ABANDONED),
	CONSTANT(CALL_REPLY),
	CONSTANT(CALL_ERROR),
	CONSTANT(CALL_DOWN),
	CONSTANT(CALL_TIMEOUT),
	CONSTANT(CALL_OVERLOADED),
	CONSTANT(CALL_CLOSED),
	CONSTANT(MAIL_NAME_MAX),
	CONSTANT(MAIL_CALL),
	CONSTANT(MAIL_CAST),
	CONSTANT(MAIL_INFO),
	CONSTANT(NAMES_DEFAULT),
	CONSTANT(NAMES_AREA_BYTES),
	CONSTANT(NAMES_MAX),
	CONSTANT(NAME_BYTES_MAX),
	CONSTANT(NAME_VALUE_BYTES_MAX),
	CONSTANT(NAME_WORDS),
	CONSTANT(NAME_VALUE_WORDS),
#include "py_layout_guards.h"
};

static int add_number(PyObject *numbers_by_name, const char *name, uint64_t value) {
	PyObject *number = PyLong_FromUnsignedLongLong(value);
	if (number == NULL)
		return -1;
	int result = PyDict_SetItemString(numbers_by_name, name, number);
	Py_DECREF(number);
	return result;
}

int shmrt_py_add_layout(PyObject *module) {
	PyObject *numbers_by_name = PyDict_New();
	if (numbers_by_name == NULL)
		return -1;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (add_number(numbers_by_name, numbers[i].name, numbers[i].value) < 0) {
			Py_DECREF(numbers_by_name);
			return -1;
		}
	}
	PyObject *layout = PyDictProxy_New(numbers_by_name);
	Py_DECREF(numbers_by_name);
	if (layout == NULL)
		return -1;
	int result = PyModule_AddObjectRef(module, "LAYOUT", layout);
	Py_DECREF(layout);
	if (result < 0)
		return -1;
	return PyModule_AddIntConstant(module, "LAYOUT_VERSION", SHMRT_LAYOUT_VERSION);
}
