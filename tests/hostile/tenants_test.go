package hostile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"rockpool/tests/platform"
)

var tenants = []attack{
	{id: "E1", what: "processes, timers and handlers for after the release", language: "sh",
		program: `(trap '' HUP TERM INT; while :; do sleep 0.1; done) & nohup setsid sleep 1000 >/dev/null 2>&1 & sleep 1000 & disown -a; exit 0`,
		want:    "exit 0", then: inTheNextRunners(`for p in /proc/[0-9]*; do cat $p/comm; done 2>/dev/null | grep -c sleep || true`, "0\n")},
	{id: "E2", what: "files for the next tenant", language: "sh", root: true, program: `
for d in /tmp /var/tmp /dev/shm /run /run/lock /home/user /root /workspace /etc /usr/local/bin /mnt /opt; do echo planted > $d/planted; done 2>/dev/null
echo 'export LD_PRELOAD=/tmp/planted' | tee -a /home/user/.profile /home/user/.bashrc /etc/profile /etc/environment /etc/ld.so.preload >/dev/null 2>&1
mkdir -p /home/user/.config/pip /home/user/.git/hooks; echo planted > /home/user/.config/pip/pip.conf; sed -i 's/^root:.*/root::0:0:planted:/' /etc/passwd; true`,
		want: "exit 0", then: inTheNextRunners(
			`find / -xdev -name planted 2>/dev/null; grep -ls planted /etc/* /home/user/.[a-z]* /home/user/.config/pip/* 2>/dev/null; env | grep LD_PRELOAD; ls -A /workspace /dev/shm /var/tmp | grep -v :; true`, "\n*")},
	{id: "E3", what: "the same randomness in two runners", script: randomness},
	{id: "E4", what: "60 clients for a pool of 5", script: claimRace},
	{id: "E5", what: "claims of an environment that is going", script: claimTheDying},
	{id: "E6", what: "ids of other, former and no runners", script: foreignIDs},
	{id: "E7", what: "a slow close, then the next user's runner", script: slowClose},
	{id: "E8", what: "a runner that ran out of memory, given out again", language: "sh", root: true,
		program: `(cat /dev/zero > /tmp/fill) & (cat /dev/zero > /dev/shm/fill) & python3 -c 'x = []
while True: x.append(b"x" * (1 << 20))'; sleep 0.2; exit 137`, want: outOfMemory, then: neverAgain},
	{id: "E9", what: "runners that are held and never given back", script: hoarded},
}

// claimRace has many clients claim at once; nobody may get what another one has.
func claimRace(ctx context.Context, a *arena, _ string) (err error) {
	const env, clients = 12, 60
	if err := a.PutEnvironment(ctx, env, platform.Environment{PrewarmingPoolSize: 5, CPULimit: 10, MemoryLimit: 64, Image: "host"}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.DeleteEnvironment(ctx, env)) }()
	var mu sync.Mutex
	var wg sync.WaitGroup
	owners := map[string]int{}
	var errs []error
	for range clients {
		wg.Go(func() {
			id, err := a.Claim(ctx, env, time.Minute)
			if err == nil {
				defer func() { _ = a.Release(ctx, id) }()
			}
			mu.Lock()
			defer mu.Unlock()
			if status, ok := errors.AsType[*platform.StatusError](err); ok && status.Status == 500 {
				return // refused for want of runners
			}
			errs = append(errs, err)
			owners[id]++
		})
	}
	wg.Wait()
	for id, n := range owners {
		if n > 1 {
			errs = append(errs, fmt.Errorf("runner %s was given to %d clients", id, n))
		}
	}
	if len(owners) < 5 {
		errs = append(errs, fmt.Errorf("only %d clients got a runner", len(owners)))
	}
	return errors.Join(errs...)
}

func randomness(ctx context.Context, a *arena, runner string) error {
	const command = `head -c 16 /dev/urandom | od -An -tx1; python3 -c 'import uuid, random, sys; print(uuid.uuid4(), random.random(), hash("x"), id(object()))'; cat /proc/sys/kernel/random/uuid`
	seen := map[string]bool{}
	for i := range 3 {
		if i > 0 {
			another, err := a.Claim(ctx, attackers, 0)
			if err != nil {
				return err
			}
			defer func() { _ = a.Release(ctx, another) }()
			runner = another
		}
		out, err := a.sh(ctx, runner, command)
		if err != nil {
			return err
		}
		for _, word := range strings.Split(out, "\n") {
			if word != "" && seen[word] {
				return fmt.Errorf("two runners drew %q", word)
			}
			seen[word] = true
		}
	}
	return nil
}

// claimTheDying claims while the environment is deleted. Nothing of it may be usable afterwards, or be left.
func claimTheDying(ctx context.Context, a *arena, _ string) error {
	const env = 13
	if err := a.PutEnvironment(ctx, env, platform.Environment{PrewarmingPoolSize: 4, CPULimit: 10, MemoryLimit: 64, Image: "host"}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		wg.Go(func() { ids[i], _ = a.Claim(ctx, env, time.Minute) })
	}
	err := a.DeleteEnvironment(ctx, env)
	wg.Wait()
	for _, id := range ids {
		if id == "" || err != nil {
			continue
		}
		err = await(ctx, func() (bool, error) {
			status, _, err := a.Do(ctx, "POST", "/runners/"+id+"/execute", `{"command":"true"}`)
			return status == 410, err
		})
	}
	return err
}

func foreignIDs(ctx context.Context, a *arena, _ string) error {
	former, err := a.Claim(ctx, attackers, 0)
	if err != nil {
		return err
	}
	if err := a.Release(ctx, former); err != nil {
		return err
	}
	for _, id := range []string{former, former + "x", "10-00000000-0000-0000-0000-000000000000", "template-10", "..%2F..%2Fexecution-environments", "%2e%2e", "10", "%00", strings.Repeat("a", 5000)} {
		for path, method := range map[string]string{"": "DELETE", "/files": "GET", "/files/raw?path=x": "GET", "/execute": "POST", "/websocket?executionID=x": "GET"} {
			status, body, err := a.Do(ctx, method, "/runners/"+id+path, `{"command":"id"}`)
			if err != nil || status != 404 && status != 410 {
				return fmt.Errorf("%s %.60s%s: status %d %.200s, %w", method, id, path, status, body, err)
			}
		}
	}
	return nil
}

// slowClose keeps a session half closed while its runner goes and others come.
func slowClose(ctx context.Context, a *arena, _ string) (err error) {
	first, err := a.Claim(ctx, attackers, time.Minute)
	if err != nil {
		return err
	}
	s, err := a.Start(ctx, first, platform.Execution{Command: "trap '' INT QUIT TERM HUP; while :; do read -t 1; done"})
	if err != nil {
		return err
	}
	defer s.Abort()
	if _, err := s.Next(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.Stop(), a.Release(ctx, first)); err != nil {
		return err
	}
	var held []string
	defer func() {
		for _, r := range held {
			err = errors.Join(err, a.Release(ctx, r))
		}
	}()
	for range 2 * poolSize {
		r, err := a.Claim(ctx, attackers, time.Minute)
		if err != nil {
			return err
		}
		held = append(held, r)
		if r == first {
			return errors.New("an id was given twice")
		}
	}
	s.Abort()
	if status, _, err := a.Do(ctx, "DELETE", "/runners/"+first, nil); err != nil || status != 410 {
		return fmt.Errorf("a second release: status %d, %w", status, err)
	}
	for _, r := range held {
		if out, err := a.sh(ctx, r, "echo alive"); err != nil || out != "alive\n" {
			return fmt.Errorf("the next user's runner: %q, %w", out, err)
		}
	}
	return nil
}

// neverAgain claims more runners than there are places; none may be the one that is given back here.
func neverAgain(ctx context.Context, a *arena, runner string) (err error) {
	status, _, err := a.Do(ctx, "DELETE", "/runners/"+runner, nil)
	if err != nil || status != 204 && status != 410 {
		return fmt.Errorf("release: status %d, %w", status, err)
	}
	for range 2*poolSize + 1 {
		id, err := a.Claim(ctx, attackers, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.Release(ctx, id)) }()
		if id == runner {
			return errors.New("a runner that ran out of memory was given out again")
		}
		if out, err := a.sh(ctx, id, "ls -A /tmp /dev/shm | grep fill; true"); err != nil || out != "" {
			return fmt.Errorf("the next tenant sees %q, %w", out, err)
		}
	}
	return err
}

// hoarded claims all there is for a second and lets go of nothing. The next client gets a runner all the same, and the hoard is gone.
func hoarded(ctx context.Context, a *arena, _ string) error {
	var hoard []string
	for range 2 * poolSize {
		id, err := a.Claim(ctx, attackers, time.Second)
		if err != nil {
			return err
		}
		hoard = append(hoard, id)
	}
	next, err := a.Claim(ctx, attackers, time.Minute)
	if err != nil {
		return fmt.Errorf("the next client: %w", err)
	}
	for _, id := range hoard {
		err = errors.Join(err, await(ctx, func() (bool, error) {
			status, _, err := a.Do(ctx, "POST", "/runners/"+id+"/execute", `{"command":"true"}`)
			return status == 410, err
		}))
	}
	return errors.Join(err, a.Release(ctx, next))
}
