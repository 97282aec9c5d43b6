/* lane.c -- see lane.h.
 *
 * Who writes what: `tail` and the bytes between tail and head + capacity belong to the producer, `head`
 * to the consumer. A producer that died leaves a whole number of committed records and, behind them,
 * bytes that nobody reads; a consumer that died leaves `head` at the oldest record whose effect is not
 * durable. Nobody repairs: `attach` reads both words and goes on.
 *
 * A PAD may be 16 bytes long, so only the first half of a header (size, kind) is read before the kind
 * is known.
 */
#include "lane.h"

#define ALIGNMENT 16

/* The header as the words it is loaded by: each is read exactly once, so a peer that scribbles cannot
 * show the check one value and the use another. */
union header_words {
	struct shmrt_record_header header;
	uint64_t words[4];
};
_Static_assert(sizeof(union header_words) == sizeof(struct shmrt_record_header), "a header is four words");

static inline bool capacity_is_valid(uint64_t capacity) {
	return capacity >= SHMRT_LANE_CAPACITY_MIN && shmrt_is_power_of_two(capacity);
}

static inline bool positions_are_valid(uint64_t tail, uint64_t head, uint64_t capacity) {
	return tail - head <= capacity && ((tail | head) & (ALIGNMENT - 1)) == 0;
}

/* Relaxed is enough: tail was loaded with acquire (L1) before any byte in front of it is looked at. */
static inline uint64_t load_word(const uint8_t *bytes) {
	return atomic_load_explicit((const _Atomic uint64_t *)(const void *)bytes, memory_order_relaxed); /* L1 */
}

/* Reads and checks the record at `position`; `available` bytes are committed from there on. */
static int read_header(const struct shmrt_lane_shared *shared, uint64_t capacity, uint64_t position,
		       uint64_t available, struct shmrt_record_header *header) {
	uint64_t index = position & (capacity - 1);
	uint64_t contiguous = capacity - index;
	const uint8_t *bytes = shared->data + index;
	union header_words copy = {.words = {load_word(bytes)}};
	uint64_t size = copy.header.size;

	if (size % ALIGNMENT != 0 || size > available || size > contiguous)
		return SHMRT_CORRUPT;
	if (copy.header.kind == SHMRT_RECORD_PAD) {
		if (size != contiguous)
			return SHMRT_CORRUPT;
		*header = copy.header;
		return SHMRT_OK;
	}
	if (size < sizeof(struct shmrt_record_header) || size > shmrt_lane_record_max(capacity))
		return SHMRT_CORRUPT;
	for (size_t i = 1; i < 4; i++)
		copy.words[i] = load_word(bytes + i * sizeof(uint64_t));
	uint64_t body = copy.header.block_count * sizeof(struct shmrt_block_reference) +
			(uint64_t)copy.header.inline_size;
	if (body > size - sizeof(struct shmrt_record_header))
		return SHMRT_CORRUPT;
	*header = copy.header;
	return SHMRT_OK;
}

void shmrt_lane_format(struct shmrt_lane_shared *shared, uint64_t start) {
	SHMRT_ASSERT(start % ALIGNMENT == 0);
	atomic_store_explicit(&shared->head, start, memory_order_relaxed); /* nobody else looks yet */
	atomic_store_explicit(&shared->tail, start, memory_order_release); /* L1: an empty lane */
}

/* ---- producer ------------------------------------------------------------------------------------ */

int shmrt_lane_attach_producer(struct shmrt_lane_producer *producer, struct shmrt_lane_shared *shared,
			       uint64_t capacity) {
	/* tail first: it stands still (its writer is us), so head cannot have passed it when it is read. */
	uint64_t tail = atomic_load_explicit(&shared->tail, memory_order_acquire); /* L1: of a predecessor */
	uint64_t head = atomic_load_explicit(&shared->head, memory_order_acquire); /* L2 */
	if (!capacity_is_valid(capacity) || !positions_are_valid(tail, head, capacity))
		return SHMRT_CORRUPT;
	*producer = (struct shmrt_lane_producer){
		.shared = shared, .capacity = capacity, .tail = tail, .committed = tail, .cached_head = head};
	return SHMRT_OK;
}

/* Looks at the real head. */
static int refresh_head(struct shmrt_lane_producer *producer) {
	uint64_t head = atomic_load_explicit(&producer->shared->head, memory_order_acquire); /* L2 */
	if (SHMRT_UNLIKELY(!positions_are_valid(producer->tail, head, producer->capacity)))
		return SHMRT_CORRUPT;
	producer->cached_head = head;
	return SHMRT_OK;
}

int shmrt_lane_reserve(struct shmrt_lane_producer *producer, uint64_t body,
		       struct shmrt_record_header **record) {
	uint64_t capacity = producer->capacity;
	uint64_t record_max = shmrt_lane_record_max(capacity);
	if (SHMRT_UNLIKELY(body > record_max - sizeof(struct shmrt_record_header)))
		return SHMRT_TOO_LARGE;
	uint64_t size = shmrt_record_bytes(body);
	uint64_t index = producer->tail & (capacity - 1);
	uint64_t pad = capacity - index < size ? capacity - index : 0;

	if (capacity - (producer->tail - producer->cached_head) < pad + size) {
		int result = refresh_head(producer);
		if (SHMRT_UNLIKELY(result != SHMRT_OK))
			return result;
		if (capacity - (producer->tail - producer->cached_head) < pad + size)
			return SHMRT_FULL;
	}
	uint8_t *bytes = producer->shared->data + index;
	if (pad != 0) { /* only half a header: a pad may be as short as that */
		union header_words filler = {.header = {.size = (uint32_t)pad, .kind = SHMRT_RECORD_PAD}};
		memcpy(bytes, filler.words, sizeof(filler.words[0]));
		bytes = producer->shared->data;
	}
	*record = (struct shmrt_record_header *)(void *)bytes;
	**record = (struct shmrt_record_header){.size = (uint32_t)size};
	producer->tail += pad + size;
	return SHMRT_OK;
}

uint64_t shmrt_lane_position(const struct shmrt_lane_producer *producer, const struct shmrt_record_header *record) {
	uint64_t index = (uint64_t)((const uint8_t *)record - producer->shared->data);
	return producer->tail - ((producer->tail - index) & (producer->capacity - 1));
}

bool shmrt_lane_is_needed(const struct shmrt_lane_producer *producer, uint64_t position) {
	uint64_t head = atomic_load_explicit(&producer->shared->head, memory_order_acquire); /* L2 */
	return position - head < producer->capacity; /* a head beyond it: the difference wraps */
}

void shmrt_lane_shrink(struct shmrt_lane_producer *producer, struct shmrt_record_header *record,
		       uint64_t body) {
	/* The old size is computed, not read: the record lies in shared memory. */
	uint64_t size_old = producer->tail - shmrt_lane_position(producer, record);
	uint64_t size_new = shmrt_record_bytes(body);
	SHMRT_ASSERT(body < size_old && size_new <= size_old);
	record->size = (uint32_t)size_new;
	producer->tail -= size_old - size_new;
}

void shmrt_lane_commit(struct shmrt_lane_producer *producer) {
	producer->committed = producer->tail;
	atomic_store_explicit(&producer->shared->tail, producer->tail, memory_order_release); /* L1 */
}

void shmrt_lane_abort(struct shmrt_lane_producer *producer) { producer->tail = producer->committed; }

bool shmrt_lane_has_uncommitted(const struct shmrt_lane_producer *producer) {
	return producer->tail != producer->committed;
}

uint64_t shmrt_lane_free_bytes(struct shmrt_lane_producer *producer) {
	if (refresh_head(producer) != SHMRT_OK)
		return 0; /* reserve says why */
	return producer->capacity - (producer->tail - producer->cached_head);
}

/* ---- consumer ------------------------------------------------------------------------------------ */

int shmrt_lane_attach_consumer(struct shmrt_lane_consumer *consumer, struct shmrt_lane_shared *shared,
			       uint64_t capacity) {
	/* head first: it stands still (its writer is us), and tail only moves away from it. */
	uint64_t head = atomic_load_explicit(&shared->head, memory_order_acquire); /* L2: of a predecessor */
	uint64_t tail = atomic_load_explicit(&shared->tail, memory_order_acquire); /* L1 */
	if (!capacity_is_valid(capacity) || !positions_are_valid(tail, head, capacity))
		return SHMRT_CORRUPT;
	*consumer = (struct shmrt_lane_consumer){
		.shared = shared, .capacity = capacity, .cursor = head, .cached_tail = tail};
	return SHMRT_OK;
}

/* Looks at the real tail when everything known was read. OK, EMPTY or CORRUPT. */
static inline int look_for_more(struct shmrt_lane_consumer *consumer) {
	if (consumer->cursor != consumer->cached_tail)
		return SHMRT_OK;
	uint64_t tail = atomic_load_explicit(&consumer->shared->tail, memory_order_acquire); /* L1 */
	if (tail == consumer->cursor)
		return SHMRT_EMPTY;
	if (SHMRT_UNLIKELY(!positions_are_valid(tail, consumer->cursor, consumer->capacity)))
		return SHMRT_CORRUPT;
	consumer->cached_tail = tail;
	return SHMRT_OK;
}

int shmrt_lane_peek(struct shmrt_lane_consumer *consumer, struct shmrt_record_header *header,
		    const uint8_t **body) {
	/* Two rounds at most: a pad ends at the end of the array, and the next record begins there. */
	for (int round = 0; round < 2; round++) {
		int result = look_for_more(consumer);
		if (result != SHMRT_OK)
			return result;
		uint64_t cursor = consumer->cursor;
		result = read_header(consumer->shared, consumer->capacity, cursor,
				     consumer->cached_tail - cursor, header);
		if (SHMRT_UNLIKELY(result != SHMRT_OK))
			return result;
		if (SHMRT_LIKELY(header->kind != SHMRT_RECORD_PAD)) {
			*body = consumer->shared->data + (cursor & (consumer->capacity - 1)) +
				sizeof(struct shmrt_record_header);
			return SHMRT_OK;
		}
		consumer->cursor = cursor + header->size;
	}
	return SHMRT_CORRUPT; /* a pad as long as the lane behind a pad: no producer writes that */
}

void shmrt_lane_advance(struct shmrt_lane_consumer *consumer, const struct shmrt_record_header *header) {
	SHMRT_DEBUG_ASSERT(consumer->cached_tail - consumer->cursor >= header->size);
	consumer->cursor += header->size;
}

void shmrt_lane_release(struct shmrt_lane_consumer *consumer) {
	/* The comparison spares the producer a cache miss when nothing was read. */
	if (atomic_load_explicit(&consumer->shared->head, memory_order_relaxed) != consumer->cursor) /* ours */
		atomic_store_explicit(&consumer->shared->head, consumer->cursor, memory_order_release); /* L2 */
}

bool shmrt_lane_is_empty(struct shmrt_lane_consumer *consumer) {
	return look_for_more(consumer) == SHMRT_EMPTY;
}

/* ---- looking in from outside --------------------------------------------------------------------- */

uint64_t shmrt_lane_used(const struct shmrt_lane_shared *shared) {
	/* head first: tail only grows, so the difference is never negative; both may move meanwhile. */
	uint64_t head = atomic_load_explicit(&shared->head, memory_order_acquire); /* L2 */
	uint64_t tail = atomic_load_explicit(&shared->tail, memory_order_acquire); /* L1 */
	return tail - head;
}

int shmrt_lane_check(const struct shmrt_lane_shared *shared, uint64_t capacity) {
	uint64_t head = atomic_load_explicit(&shared->head, memory_order_acquire); /* L2 */
	uint64_t tail = atomic_load_explicit(&shared->tail, memory_order_acquire); /* L1 */
	if (!capacity_is_valid(capacity) || !positions_are_valid(tail, head, capacity))
		return SHMRT_CORRUPT;
	while (head != tail) { /* at most capacity / 16 rounds: every record takes that much */
		struct shmrt_record_header header;
		int result = read_header(shared, capacity, head, tail - head, &header);
		if (result != SHMRT_OK)
			return result;
		head += header.size; /* never 0: a record has a header, a pad reaches the end */
	}
	return SHMRT_OK;
}
